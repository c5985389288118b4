package controllers

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/lease"
	"batchtask.dev/operator/internal/schedule"
)

// observation is all that the next step of a task depends on.
type observation struct {
	now     time.Time
	taskID  string           // the ID for a task that has none
	invalid field.ErrorList  // what is wrong with the spec
	noSlot  error            // a *quota.LimitError when the task holds no slot
	product productCondition // of the task's product
	hold    lease.Hold       // the right to run tasks
	sure    bool             // that right is sure
	// progress is nil when the task has no run.
	progress *executor.Progress
}

// productCondition says whether tasks may run on a product.
type productCondition struct {
	exists  bool
	ready   bool
	message string // why it is not ready
}

// action is what is to be done once the status has been written.
type action string

const (
	actNothing action = ""
	actStart   action = "start"   // see that the task has a run
	actCancel  action = "cancel"  // end the run for good
	actSuspend action = "suspend" // end the run so that it can go on
	actForget  action = "forget"  // drop the run
)

// decision is the next step of a task.
type decision struct {
	status v1alpha1.BatchTaskStatus
	action action
	// event is the reason of the event to record; "" for none. Its note is the
	// message of the Ready condition; for a failure, after that condition's reason.
	event   string
	warning bool
	// scheduled is the note of an event Scheduled to record before that, for a task
	// that starts in its first step; "" for none.
	scheduled string
	// wakeAfter is when to look again if nothing happens before; 0 for never.
	wakeAfter time.Duration
	// deferrable says that the status may be written later: it only shows how far a run is,
	// and the run does not wait for that.
	deferrable bool
}

// toEnd reports whether a task is to end for good: it is cancelled, or being deleted while
// a finalizer keeps it, perhaps for long.
func toEnd(task *v1alpha1.BatchTask) bool {
	return task.Spec.Cancel || !task.DeletionTimestamp.IsZero()
}

// endMessage is that of a task which has ended so.
func endMessage(task *v1alpha1.BatchTask, when string) string {
	if !task.Spec.Cancel {
		return "Cancelled " + when + ", since it is being deleted"
	}
	return "Cancelled " + when
}

// decide is the life of a task, one step at a time. It is pure: the same task and
// observation always lead to the same decision.
func decide(task *v1alpha1.BatchTask, seen observation) decision {
	d := decision{status: *task.Status.DeepCopy()}
	d.status.ObservedGeneration = task.Generation
	d = d.step(task, seen)
	d.stamp(task, seen.hold.Epoch())
	return d
}

func (d decision) step(task *v1alpha1.BatchTask, seen observation) decision {
	refused := len(seen.invalid) > 0 || seen.noSlot != nil
	if refused && seen.progress != nil {
		d.takeProgress(*seen.progress)
		if seen.progress.Outcome == executor.OutcomeNone { // nothing ends while devices are served
			d.action = actCancel
			return d
		}
	}
	switch {
	case len(seen.invalid) > 0:
		return d.fail(task, seen, v1alpha1.ReasonInvalidSpec, retCodeInvalid, seen.invalid.ToAggregate().Error())
	case seen.noSlot != nil:
		return d.fail(task, seen, v1alpha1.ReasonQuotaExceeded, retCodeQuota, "no slot is free: "+seen.noSlot.Error())
	case task.Status.Phase == "":
		return d.wait(task, seen)
	case task.Status.Phase == v1alpha1.TaskPhaseWaiting:
		return d.fromWaiting(task, seen)
	default:
		return d.fromProcessing(task, seen)
	}
}

// wait is the first step: the task is Waiting. One whose time has come, and that
// nothing holds up, starts with the same write.
func (d decision) wait(task *v1alpha1.BatchTask, seen observation) decision {
	start := metav1.NewTime(schedule.Start(task.CreationTimestamp.Time, task.Spec.ScheduleTimeInSeconds))
	d.status.Phase = v1alpha1.TaskPhaseWaiting
	d.status.TaskID = seen.taskID
	d.status.ScheduleTime = &start
	d.event = v1alpha1.ReasonScheduled
	message := "Starts at " + start.UTC().Format(time.RFC3339)
	if !seen.now.Before(start.Time) && !toEnd(task) && seen.product.ready {
		d.scheduled = message
		return d.fromWaiting(task, seen)
	}
	d.setInProgress(task, seen, v1alpha1.ReasonScheduled, message)
	d.wakeAfter = max(start.Sub(seen.now), time.Nanosecond)
	return d
}

func (d decision) fromWaiting(task *v1alpha1.BatchTask, seen observation) decision {
	start := schedule.Start(task.CreationTimestamp.Time, task.Spec.ScheduleTimeInSeconds)
	switch {
	case toEnd(task):
		return d.finish(task, seen, v1alpha1.TaskPhaseCancelled, v1alpha1.ReasonCancelled, endMessage(task, "before it started"))
	case seen.now.Before(start):
		d.setInProgress(task, seen, v1alpha1.ReasonScheduled, "Starts at "+start.UTC().Format(time.RFC3339))
		d.wakeAfter = start.Sub(seen.now)
		return d
	case !seen.product.exists:
		return d.fail(task, seen, v1alpha1.ReasonProductNotFound, retCodeProduct,
			fmt.Sprintf("spec.productID: the namespace has no Product with ID %q any more", task.Spec.ProductID))
	}
	now := metav1.NewTime(seen.now)
	deadline := metav1.NewTime(schedule.Deadline(seen.now, task.Spec.MaxExecutionTimeInSeconds))
	d.status.Phase = v1alpha1.TaskPhaseProcessing
	d.status.StartTime, d.status.Deadline = &now, &deadline
	d.event = v1alpha1.ReasonStarted
	d.setInProgress(task, seen, v1alpha1.ReasonStarted, "Serving the devices until "+deadline.UTC().Format(time.RFC3339)+" at the latest")
	return d.run(task, seen)
}

func (d decision) fromProcessing(task *v1alpha1.BatchTask, seen observation) decision {
	if d.status.Deadline == nil { // the status was written by somebody else
		deadline := metav1.NewTime(schedule.Deadline(seen.now, task.Spec.MaxExecutionTimeInSeconds))
		d.status.Deadline = &deadline
	}
	if seen.progress == nil {
		if toEnd(task) {
			return d.finish(task, seen, v1alpha1.TaskPhaseCancelled, v1alpha1.ReasonCancelled, endMessage(task, "while it was processing"))
		}
		return d.run(task, seen)
	}
	d.takeProgress(*seen.progress)
	switch seen.progress.Outcome {
	case executor.OutcomeServed, executor.OutcomeExpired:
		return d.conclude(task, seen)
	case executor.OutcomeCancelled:
		message := endMessage(task, "while it was processing")
		if lacking := seen.progress.Lacking; lacking != "" {
			message += ". All results that are known are counted, but the last were not recorded: " + lacking
		}
		return d.finish(task, seen, v1alpha1.TaskPhaseCancelled, v1alpha1.ReasonCancelled, message)
	case executor.OutcomeBroken:
		return d.fail(task, seen, v1alpha1.ReasonInternalError, retCodeDevices, fmt.Sprintf(
			"The manager met a fault of its own in this task, and its log says where; %d devices had succeeded, the rest of %d has failed",
			seen.progress.Succeeded, seen.progress.Matched))
	case executor.OutcomeSuspended:
		// The last checkpoint is in this status; the next pass starts a new run.
		d.action = actForget
		d.wakeAfter = time.Nanosecond
		return d
	case executor.OutcomeNone:
	}
	if toEnd(task) {
		d.action = actCancel
		return d
	}
	d.deferrable = !seen.progress.Waits
	return d.run(task, seen)
}

// run sees that the task has a run if its product lets it. After the deadline
// nothing is sent any more and a run only counts, so it needs no product.
func (d decision) run(task *v1alpha1.BatchTask, seen observation) decision {
	left := schedule.End(d.status.Deadline.Time).Sub(seen.now)
	if !seen.product.ready && left > 0 {
		d.setInProgress(task, seen, v1alpha1.ReasonProductNotReady, heldUp+seen.product.message)
		d.wakeAfter = left
		if seen.progress != nil {
			d.action = actSuspend
		}
		return d
	}
	message := "Serving the devices until " + d.status.Deadline.UTC().Format(time.RFC3339) + " at the latest"
	if seen.progress != nil && seen.progress.Trouble != "" {
		message = heldUp + seen.progress.Trouble
	}
	d.setInProgress(task, seen, v1alpha1.ReasonStarted, message)
	d.action = actStart
	return d
}

// conclude decides on results whether the task is Done or Failed.
func (d decision) conclude(task *v1alpha1.BatchTask, seen observation) decision {
	devices := d.status.Counts()
	lacking := seen.progress.Lacking
	switch {
	case lacking != "" && seen.progress.Outcome == executor.OutcomeExpired && devices.Matched == 0:
		return d.fail(task, seen, v1alpha1.ReasonFleetUnavailable, retCodeDevices,
			"The devices could not be counted before the time was over: "+lacking)
	case lacking != "" && seen.progress.Outcome == executor.OutcomeExpired && devices.Failed > 0:
		return d.fail(task, seen, v1alpha1.ReasonFleetUnavailable, retCodeDevices, fmt.Sprintf(
			"%d of %d devices failed or had no result when the time was over; not all are named or recorded, since the fleet could not be reached: %s",
			devices.Failed, devices.Matched, lacking))
	case devices.Failed > 0 && seen.progress.Outcome == executor.OutcomeExpired:
		return d.fail(task, seen, v1alpha1.ReasonDeadlineExceeded, retCodeDevices,
			fmt.Sprintf("%d of %d devices failed or had no result when the time was over", devices.Failed, devices.Matched))
	case devices.Failed > 0:
		return d.fail(task, seen, v1alpha1.ReasonDevicesFailed, retCodeDevices,
			fmt.Sprintf("%d of %d devices failed, see status.failures", devices.Failed, devices.Matched))
	case devices.Matched == 0 && seen.progress.Outcome == executor.OutcomeExpired && !seen.product.exists:
		return d.fail(task, seen, v1alpha1.ReasonProductNotFound, retCodeProduct, fmt.Sprintf(
			"spec.productID: the namespace has no Product with ID %q any more, and its devices had not been counted", task.Spec.ProductID))
	case devices.Matched == 0:
		d.warning = true
		d.status.Devices, d.status.Percent = &devices, 100
		return d.finish(task, seen, v1alpha1.TaskPhaseDone, v1alpha1.ReasonNoDeviceMatched, "No device matches spec.deviceNameFilter")
	default:
		message := fmt.Sprintf("All %d devices have succeeded", devices.Matched)
		if lacking != "" {
			message += ", but the last results were not recorded: " + lacking
		}
		return d.finish(task, seen, v1alpha1.TaskPhaseDone, v1alpha1.ReasonCompleted, message)
	}
}

func (d decision) fail(task *v1alpha1.BatchTask, seen observation, reason string, retCode int32, message string) decision {
	d.status.RetCode = retCode
	d.status.ErrMsg = cutMessage(message)
	d = d.finish(task, seen, v1alpha1.TaskPhaseFailed, reason, message)
	d.event, d.warning = v1alpha1.EventFailed, true
	return d
}

func (d decision) finish(task *v1alpha1.BatchTask, seen observation, phase v1alpha1.TaskPhase, reason, message string) decision {
	now := metav1.NewTime(seen.now)
	d.status.Phase = phase
	d.status.CompletionTime = &now
	if d.status.TaskID == "" {
		d.status.TaskID = seen.taskID
	}
	d.event = reason
	d.action = actForget
	d.setFinished(task, seen, reason, message)
	return d
}

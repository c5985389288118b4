package executor

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/lease"
	"batchtask.dev/operator/internal/namefilter"
	"batchtask.dev/operator/internal/schedule"
	"batchtask.dev/operator/internal/shadow"
)

// Task is what a run needs to know of a BatchTask.
type Task struct {
	types.NamespacedName
	UID types.UID

	Product  fleet.Product
	Filter   *namefilter.Filter
	Deadline time.Time // until when devices may be served

	// After and Until bound the names that are served: After is exclusive, "" from
	// the start; Until is inclusive, "" to the end. A resumed task begins after its
	// checkpoint.
	After, Until string

	// Pending are devices at or before After that have no result: they are in no count.
	Pending []string

	// Hold is the right to serve devices, as it was before the task was taken over.
	Hold lease.Hold

	// What is counted already, up to After.
	Matched, Succeeded, Failed int64
	Failures                   []v1alpha1.DeviceFailure

	// Exactly one of these is set, by the task type.
	Publish *Publish
	Desired shadow.Object
}

// Publish is a message to every device, on {productID}/{deviceName}/{Topic}.
type Publish struct {
	Topic   string
	Payload []byte
}

// FromObject reads a Task from a BatchTask that has a deadline. The spec must be valid.
func FromObject(obj *v1alpha1.BatchTask) (Task, error) {
	filter, err := namefilter.Parse(obj.Spec.DeviceNameFilter)
	if err != nil {
		return Task{}, fmt.Errorf("spec.deviceNameFilter: %w", err)
	}
	counts := obj.Status.Counts()
	task := Task{
		NamespacedName: types.NamespacedName{Namespace: obj.Namespace, Name: obj.Name},
		UID:            obj.UID,
		Product:        fleet.Product{Namespace: obj.Namespace, ProductID: obj.Spec.ProductID},
		Filter:         filter,
		Deadline:       schedule.End(obj.Status.Deadline.Time),
		Matched:        counts.Matched,
		Succeeded:      counts.Succeeded,
		Failed:         counts.Failed,
		Failures:       obj.Status.Failures,
	}
	if obj.Status.Checkpoint != nil {
		task.After, task.Pending = obj.Status.Checkpoint.Cursor, obj.Status.Checkpoint.Pending
	}
	if obj.Spec.TaskType == v1alpha1.TaskTypePublishMessage {
		message := obj.Spec.Tasks.PublishMessageTask
		task.Publish = &Publish{Topic: message.Topic, Payload: []byte(message.Payload)}
		return task, nil
	}
	if task.Desired, err = shadow.ParseDesired(obj.Spec.Tasks.UpdateShadowTask.Desired); err != nil {
		return Task{}, fmt.Errorf("spec.tasks.updateShadowTask.desired: %w", err)
	}
	return task, nil
}

// Outcome is how a run ended.
type Outcome string

const (
	// OutcomeNone is a run that has not ended.
	OutcomeNone Outcome = ""
	// OutcomeServed is a run in which every device got its result.
	OutcomeServed Outcome = "Served"
	// OutcomeExpired is a run that met its deadline: devices without a result have
	// been counted as failed.
	OutcomeExpired Outcome = "Expired"
	// OutcomeCancelled is a run that was cancelled: every device that got a result
	// is counted.
	OutcomeCancelled Outcome = "Cancelled"
	// OutcomeBroken is a run that has met a fault in the program, and Progress.Lacking says
	// which: devices without a result have been counted as failed.
	OutcomeBroken Outcome = "Broken"
	// OutcomeSuspended is a run that was suspended and may go on after its cursor.
	OutcomeSuspended Outcome = "Suspended"
)

// Progress is how far a run has come. Its counts include those that the task
// began with.
type Progress struct {
	Cursor string // the last device that is counted
	// Pending are devices at or before Cursor that have no result, at most MaxPending.
	Pending           []string
	Mark              uint64 // names this checkpoint; see Executor.Saved
	Matched           int64  // as counted at the start; exact once Served or Expired
	Succeeded, Failed int64
	Failures          []v1alpha1.DeviceFailure
	Outcome           Outcome
	Trouble           string // what holds the run up at the moment, for people; "" if nothing
	// Waits says that the run waits, or soon will, for this to be written: it is far ahead of
	// what it knows to be saved.
	Waits bool
	// Lacking is what the run could not do before it had to end, for people: results that
	// are counted may not have been recorded, and devices that have failed are not named.
	// "" where nothing was lacking.
	Lacking string
}

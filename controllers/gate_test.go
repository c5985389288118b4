package controllers_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/taskid"
	"batchtask.dev/operator/internal/testobj"
)

// Here are no webhooks: all tasks are created past them, and the gate holds.
func TestGateWithoutWebhook(t *testing.T) {
	op := run(t, settings{})
	namespace, id := op.namespace(t)
	watched := record[*v1alpha1.BatchTask](t, op.env, &v1alpha1.BatchTaskList{}, client.InNamespace(namespace))
	var tasks []*v1alpha1.BatchTask
	for i := range 12 {
		task := testobj.BatchTask(fmt.Sprint("task-", i)).In(namespace).Product(id).Publish("event", "close").Obj()
		op.create(t, task)
		tasks = append(tasks, task)
	}
	running, refused := []string{}, 0
	for _, task := range tasks {
		now := op.waitTask(t, client.ObjectKeyFromObject(task), "the task to run or to fail", func(task *v1alpha1.BatchTask) bool {
			return task.Status.Phase == v1alpha1.TaskPhaseProcessing || task.Status.Phase.Finished()
		})
		if now.Status.Phase == v1alpha1.TaskPhaseProcessing {
			running = append(running, task.Name)
			continue
		}
		refused++
		if got := readyReason(now); got != v1alpha1.ReasonQuotaExceeded || now.Status.RetCode != 10005 {
			t.Errorf("task %s is %s, reason %s, retCode %d; want Failed, QuotaExceeded, 10005", task.Name, now.Status.Phase, got, now.Status.RetCode)
		}
		if len(op.executor.Runs(task.UID)) > 0 {
			t.Errorf("task %s had a run", task.Name)
		}
		if !strings.Contains(now.Status.ErrMsg, "may have 5 active tasks") {
			t.Errorf("errMsg of task %s: %s", task.Name, now.Status.ErrMsg)
		}
	}
	slices.Sort(running)
	if len(running) != 5 || refused != 7 {
		t.Errorf("%d tasks run and %d failed, want 5 and 7", len(running), refused)
	}
	if diff := cmp.Diff(running, op.slots(t, namespace)); diff != "" {
		t.Errorf("slots (-running +slots):\n%s", diff)
	}
	// Each carries its ID as a label, though no webhook put it there.
	for _, task := range tasks {
		op.waitTask(t, client.ObjectKeyFromObject(task), "the label", func(task *v1alpha1.BatchTask) bool {
			return taskid.Valid(task.Status.TaskID) && task.Labels[v1alpha1.LabelTaskID] == task.Status.TaskID
		})
	}
	active := map[string]bool{}
	for _, task := range watched.all(t) {
		active[task.Name] = task.Status.Phase != "" && !task.Status.Phase.Finished()
		n := 0
		for _, is := range active {
			if is {
				n++
			}
		}
		if n > 5 {
			t.Fatalf("at revision %s, %d tasks were active", task.ResourceVersion, n)
		}
	}
}

// The ledger is in the API server's care too: it refuses a slot too many.
func TestLedgerByHand(t *testing.T) {
	op := run(t, settings{})
	namespace, id := op.namespace(t)
	for i := range 5 {
		op.create(t, testobj.BatchTask(fmt.Sprint("task-", i)).In(namespace).Product(id).Publish("event", "close").Obj())
	}
	waitFor(t, "five slots to be taken", func() (bool, any) { return len(op.slots(t, namespace)) == 5, nil })
	ledger := &v1alpha1.TaskQuota{}
	name := client.ObjectKeyFromObject(testobj.TaskQuota(namespace).Obj())
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error { // the operator writes it too
		if err := op.env.Client.Get(t.Context(), name, ledger); err != nil {
			return err
		}
		ledger.Status.Slots = append(ledger.Status.Slots, v1alpha1.TaskSlot{UID: "sixth", Name: "sixth", ReservedAt: metav1.Now()})
		return op.env.Client.Status().Update(t.Context(), ledger)
	})
	if !apierrors.IsInvalid(err) ||
		!strings.Contains(err.Error(), "status.slots holds more tasks than spec.maxActiveTasks allows") {
		t.Errorf("a sixth slot: %v, want 422 Invalid", err)
	}
}

func TestMalformedTaskFailsAlone(t *testing.T) {
	op := run(t, settings{started: served(1)})
	namespace, id := op.namespace(t)
	bad := testobj.BatchTask("bad").In(namespace).Product(id).Publish("event", "close").Filter(strings.Repeat("门", 1000) + "(").Obj()
	good := testobj.BatchTask("good").In(namespace).Product(id).Publish("event", "close").Obj()
	op.create(t, bad, good)
	op.waitPhase(t, good, v1alpha1.TaskPhaseDone)
	failed := op.waitPhase(t, bad, v1alpha1.TaskPhaseFailed)
	if got := readyReason(failed); got != v1alpha1.ReasonInvalidSpec {
		t.Errorf("the malformed task failed with reason %s, want %s", got, v1alpha1.ReasonInvalidSpec)
	}
	if failed.Status.RetCode != 10002 || !strings.HasPrefix(failed.Status.ErrMsg, "spec.deviceNameFilter: Invalid value: ") {
		t.Errorf("retCode %d, errMsg %q", failed.Status.RetCode, failed.Status.ErrMsg)
	}
	// Nor does one loop that was stored when larger filters were taken.
	large := testobj.BatchTask("large").In(namespace).Product(id).Publish("event", "close").Filter("(.?.?.?.?.?.?.?.?.?.?){100}!").Obj()
	op.create(t, large)
	failed = op.waitPhase(t, large, v1alpha1.TaskPhaseFailed)
	if readyReason(failed) != v1alpha1.ReasonInvalidSpec || !strings.Contains(failed.Status.ErrMsg, "is too large: it would be compiled to 2204 instructions") {
		t.Errorf("a filter that is too large: reason %s, errMsg %q", readyReason(failed), failed.Status.ErrMsg)
	}
	// Its message is longer than the API server takes in an event.
	op.waitEvent(t, bad, v1alpha1.EventFailed, "Warning")
}

// waitEvent waits for an event about a task.
func (op *operator) waitEvent(t *testing.T, task *v1alpha1.BatchTask, reason, eventType string) {
	t.Helper()
	waitFor(t, "the event "+reason+" of "+task.Name, func() (bool, any) {
		var list eventsv1.EventList
		if err := op.env.Client.List(t.Context(), &list, client.InNamespace(task.Namespace)); err != nil {
			return false, err
		}
		var seen []string
		for _, event := range list.Items {
			if event.Regarding.UID == task.UID {
				if event.Reason == reason && event.Type == eventType && event.Note != "" {
					return true, nil
				}
				seen = append(seen, event.Type+" "+event.Reason)
			}
		}
		return false, seen
	})
}

func TestEvents(t *testing.T) {
	op := run(t, settings{})
	for _, tc := range []struct {
		name     string
		progress *executor.Progress // nil: the task is cancelled
		want     string
		wantType string
	}{
		{"done", &executor.Progress{Matched: 1, Succeeded: 1, Outcome: executor.OutcomeServed}, v1alpha1.ReasonCompleted, "Normal"},
		{"none", &executor.Progress{Outcome: executor.OutcomeServed}, v1alpha1.ReasonNoDeviceMatched, "Warning"},
		{"failed", &executor.Progress{Matched: 1, Failed: 1, Outcome: executor.OutcomeServed}, v1alpha1.EventFailed, "Warning"},
		{"expired", &executor.Progress{Matched: 1, Failed: 1, Outcome: executor.OutcomeExpired}, v1alpha1.EventFailed, "Warning"},
		{"cancelled", nil, v1alpha1.ReasonCancelled, "Normal"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			namespace, id := op.namespace(t)
			task := testobj.BatchTask("task").In(namespace).Product(id).Publish("event", "close").Obj()
			op.create(t, task)
			waitFor(t, "the task to run", func() (bool, any) { return op.executor.Working(task.UID), nil })
			if tc.progress != nil {
				op.executor.Set(client.ObjectKeyFromObject(task), *tc.progress)
			} else {
				op.patch(t, task, `{"spec":{"cancel":true}}`)
			}
			for _, want := range []struct{ reason, eventType string }{
				{v1alpha1.ReasonScheduled, "Normal"}, {v1alpha1.ReasonStarted, "Normal"}, {tc.want, tc.wantType},
			} {
				op.waitEvent(t, task, want.reason, want.eventType)
			}
		})
	}
}

func TestFinishedTask(t *testing.T) {
	// A little ahead of the API server's clock, so that the task is due at once.
	clk := clocktesting.NewFakePassiveClock(time.Now().Add(time.Hour))
	op := run(t, settings{clock: clk, started: served(3)})
	namespace, id := op.namespace(t)
	task := testobj.BatchTask("task").In(namespace).Product(id).Publish("event", "close").TTL(3600).Obj()
	op.create(t, task)
	done := op.waitPhase(t, task, v1alpha1.TaskPhaseDone)
	if diff := cmp.Diff(v1alpha1.DeviceCounts{Matched: 3, Succeeded: 3}, done.Status.Counts()); diff != "" || done.Status.Percent != 100 {
		t.Errorf("percent %d, devices (-want +got):\n%s", done.Status.Percent, diff)
	}
	waitFor(t, "its slot to be freed", func() (bool, any) {
		slots := op.slots(t, namespace)
		return len(slots) == 0, slots
	})
	// A longer life changes the generation; the status follows, or kstatus would
	// wait for ever.
	op.patch(t, task, `{"spec":{"ttlSecondsAfterFinished":7200,"cancel":true}}`)
	followed := op.waitTask(t, client.ObjectKeyFromObject(task), "the status to follow", func(task *v1alpha1.BatchTask) bool {
		return task.Generation == 2 && task.Status.ObservedGeneration == 2 && task.Status.Phase == v1alpha1.TaskPhaseDone && kstatusIs(t, task, "Current")
	})
	// What the cache does not keep of a finished task is not lost by that write.
	done.Status.ObservedGeneration, done.Spec.Cancel, done.Spec.TTLSecondsAfterFinished = 2, true, ptr.To[int32](7200)
	for i := range done.Status.Conditions {
		done.Status.Conditions[i].ObservedGeneration = 2
	}
	if diff := cmp.Diff(done.Spec, followed.Spec) + cmp.Diff(done.Status, followed.Status) + cmp.Diff(done.Labels, followed.Labels); diff != "" {
		t.Errorf("the task has changed (-before +after):\n%s", diff)
	}
	// Its time passes: an hour is not enough any more.
	clk.SetTime(clk.Now().Add(2*time.Hour - 10*time.Second))
	op.look(t, task)
	if err := op.env.Client.Get(t.Context(), client.ObjectKeyFromObject(task), task); err != nil || !task.DeletionTimestamp.IsZero() {
		t.Fatalf("the task is gone before its time (error %v)", err)
	}
	clk.SetTime(clk.Now().Add(11 * time.Second))
	waitFor(t, "the task to be deleted", func() (bool, any) {
		op.executor.Notify(client.ObjectKeyFromObject(task)) // the queue waits in real time: wake it
		err := op.env.Client.Get(t.Context(), client.ObjectKeyFromObject(task), &v1alpha1.BatchTask{})
		return apierrors.IsNotFound(err), err
	})
}

func TestScheduledTaskStartsInTime(t *testing.T) {
	clk := clocktesting.NewFakePassiveClock(time.Now())
	op := run(t, settings{clock: clk})
	namespace, id := op.namespace(t)
	ahead := clk.Now().Add(48 * time.Hour)
	task := testobj.BatchTask("task").In(namespace).Product(id).Publish("event", "close").ScheduleAt(ahead.Unix()).Obj()
	op.create(t, task)
	waiting := op.waitPhase(t, task, v1alpha1.TaskPhaseWaiting)
	if !kstatusIs(t, waiting, "InProgress") {
		t.Error("a waiting task is not InProgress")
	}
	starts := waiting.Status.ScheduleTime.Time
	if want := waiting.CreationTimestamp.Add(86400 * time.Second); !starts.Equal(want) {
		t.Errorf("scheduleTime is %v, want %v: 86400 s after the creation", starts, want)
	}
	clk.SetTime(starts.Add(-time.Millisecond))
	op.look(t, task)
	if err := op.env.Client.Get(t.Context(), client.ObjectKeyFromObject(task), task); err != nil || task.Status.Phase != v1alpha1.TaskPhaseWaiting {
		t.Errorf("a millisecond early the task is %s (error %v)", task.Status.Phase, err)
	}
	// It is looked at again after that millisecond, in real time, until its time has come.
	clk.SetTime(starts)
	running := op.waitPhase(t, task, v1alpha1.TaskPhaseProcessing)
	if got, want := running.Status.Deadline.Time, starts.Add(86400*time.Second).Truncate(time.Second); !got.Equal(want) {
		t.Errorf("deadline is %v, want %v", got, want)
	}
	if running.Spec.ScheduleTimeInSeconds != ahead.Unix() || running.Generation != 1 {
		t.Error("the spec was changed")
	}
}

package controllers_test

import (
	"fmt"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/testobj"
)

// status.devices.acknowledged follows the shadows while the task runs and after it
// has finished, and does not fall when a device goes.
func TestAcknowledged(t *testing.T) {
	op := run(t, settings{started: func(executor.Task) executor.Progress {
		return executor.Progress{Matched: 3, Succeeded: 1, Cursor: "a"}
	}})
	namespace, id := op.namespace(t)
	devices := map[string]*v1alpha1.Device{}
	for _, name := range []string{"a", "b", "c"} {
		devices[name] = testobj.Device(name).In(namespace).Product(id).Obj()
		op.create(t, devices[name])
	}
	task := testobj.BatchTask("task").In(namespace).Product(id).UpdateShadow(`{"state":"open"}`).Obj()
	other := testobj.BatchTask("other").In(namespace).Product(id).Publish("event", "x").Obj()
	op.create(t, task, other)
	op.waitPhase(t, task, v1alpha1.TaskPhaseProcessing)
	op.waitPhase(t, other, v1alpha1.TaskPhaseProcessing)

	shadow := func(name string, acknowledged int) {
		t.Helper()
		status := fmt.Sprintf(`{"status":{"shadow":{"version":1,"timestamp":1,"appliedTasks":["older",%q],"acknowledged":%d}}}`, task.UID, acknowledged)
		if err := op.env.Client.Status().Patch(t.Context(), devices[name], client.RawPatch(client.Merge.Type(), []byte(status))); err != nil {
			t.Fatal(err)
		}
	}
	want := func(n int64, phase v1alpha1.TaskPhase) {
		t.Helper()
		op.waitTask(t, client.ObjectKeyFromObject(task), fmt.Sprintf("%d devices to have acknowledged while the task is %s", n, phase), func(task *v1alpha1.BatchTask) bool {
			return task.Status.Counts().Acknowledged == n && task.Status.Phase == phase
		})
	}
	shadow("a", 2)
	shadow("b", 1) // the older task alone
	want(1, v1alpha1.TaskPhaseProcessing)
	// It is Processing a moment before it has a run.
	waitFor(t, "the task to run", func() (bool, any) { return op.executor.Working(task.UID), nil })
	op.executor.Set(client.ObjectKeyFromObject(task), executor.Progress{Matched: 3, Succeeded: 3, Cursor: "c", Outcome: executor.OutcomeServed})
	want(1, v1alpha1.TaskPhaseDone)
	shadow("b", 2)
	want(2, v1alpha1.TaskPhaseDone)
	if err := op.env.Client.Delete(t.Context(), devices["a"]); err != nil {
		t.Fatal(err)
	}
	shadow("c", 2) // a and b and c, though the shadows of two say so
	want(3, v1alpha1.TaskPhaseDone)
	if got := op.waitPhase(t, other, v1alpha1.TaskPhaseProcessing).Status.Counts().Acknowledged; got != 0 {
		t.Errorf("%d devices have acknowledged a message", got)
	}
}

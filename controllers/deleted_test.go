package controllers_test

import (
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/testobj"
)

// A task that is deleted while somebody's finalizer keeps it ends as cancelled: what it has
// counted is written, and its slot is free.
func TestDeletedTaskWithAFinalizer(t *testing.T) {
	op := run(t, settings{})
	namespace, id := op.namespace(t)
	keep := func(task *v1alpha1.BatchTask) { task.Finalizers = []string{"example.com/keep"} }
	waiting := testobj.BatchTask("waiting").In(namespace).Product(id).Publish("event", "close").
		ScheduleAt(time.Now().Add(time.Hour).Unix()).Change(keep).Obj()
	running := testobj.BatchTask("running").In(namespace).Product(id).Publish("event", "close").Change(keep).Obj()
	op.create(t, waiting, running)
	op.waitPhase(t, waiting, v1alpha1.TaskPhaseWaiting)
	op.waitPhase(t, running, v1alpha1.TaskPhaseProcessing)
	name := client.ObjectKeyFromObject(running)
	waitFor(t, "a run", func() (bool, any) { return op.executor.Working(running.UID), nil })
	op.executor.Set(name, executor.Progress{Cursor: "d", Matched: 10, Succeeded: 4, Failed: 1})
	for _, task := range []*v1alpha1.BatchTask{waiting, running} {
		if err := op.env.Client.Delete(t.Context(), task); err != nil {
			t.Fatal(err)
		}
	}
	for _, task := range []*v1alpha1.BatchTask{waiting, running} {
		got := op.waitPhase(t, task, v1alpha1.TaskPhaseCancelled)
		if readyReason(got) != v1alpha1.ReasonCancelled || got.Status.ObservedGeneration != got.Generation {
			t.Errorf("task %s: %+v", task.Name, got.Status)
		}
	}
	got := op.waitPhase(t, running, v1alpha1.TaskPhaseCancelled)
	if counts := got.Status.Counts(); counts.Succeeded != 4 || counts.Failed != 1 || counts.Matched != 10 {
		t.Errorf("its counts are lost: %+v", counts)
	}
	waitFor(t, "the slots to be free", func() (bool, any) {
		slots := op.slots(t, namespace)
		return len(slots) == 0, slots
	})
}

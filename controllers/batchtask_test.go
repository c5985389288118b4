package controllers_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/testobj"
)

// served is a run that has ended at once, all devices having succeeded.
func served(devices int64) func(executor.Task) executor.Progress {
	return func(executor.Task) executor.Progress {
		return executor.Progress{Cursor: "z", Matched: devices, Succeeded: devices, Outcome: executor.OutcomeServed}
	}
}

// nudging wakes the reconciler when it forgets a run, as any event does that comes
// while the reconciler is at work.
type nudging struct {
	*testobj.Executor
	once *sync.Map // by the task's name
}

func (n nudging) Forget(name types.NamespacedName) {
	n.Executor.Forget(name)
	if _, again := n.once.LoadOrStore(name, true); !again {
		n.Notify(name)
	}
}

// The cache lags behind what the reconciler has written. A run that has ended must
// not be begun again for a task that only the cache still shows as Processing: its
// devices would get everything twice.
func TestEachTaskRunsOnce(t *testing.T) {
	var fake *testobj.Executor
	op := run(t, settings{executor: func(_ *testing.T, _ fleet.Store, wake func(types.NamespacedName)) controllers.Executor {
		fake = &testobj.Executor{Notify: wake, Started: served(2)}
		return nudging{fake, &sync.Map{}}
	}})
	var tasks []*v1alpha1.BatchTask
	for range 4 {
		namespace, id := op.namespace(t)
		for i := range 5 {
			tasks = append(tasks, testobj.BatchTask(fmt.Sprint("task-", i)).In(namespace).Product(id).Publish("event", "close").Obj())
		}
	}
	for _, task := range tasks {
		op.create(t, task)
	}
	for _, task := range tasks {
		op.waitPhase(t, task, v1alpha1.TaskPhaseDone)
		if runs := fake.Runs(task.UID); len(runs) != 1 {
			t.Errorf("task %s/%s had %d runs, want 1", task.Namespace, task.Name, len(runs))
		}
	}
	// A second run can begin a little later.
	for _, task := range tasks {
		if runs := fake.Runs(task.UID); len(runs) != 1 {
			t.Errorf("task %s/%s had %d runs, want 1", task.Namespace, task.Name, len(runs))
		}
	}
}

// A suspended run goes on where its last checkpoint says, not where the cache does.
func TestSuspendedRunGoesOnAtItsCheckpoint(t *testing.T) {
	op := run(t, settings{})
	namespace, id := op.namespace(t)
	task := testobj.BatchTask("task").In(namespace).Product(id).Publish("event", "close").Obj()
	op.create(t, task)
	op.waitPhase(t, task, v1alpha1.TaskPhaseProcessing)
	name := client.ObjectKeyFromObject(task)
	const rounds = 30
	for i := range rounds {
		waitFor(t, "a run", func() (bool, any) { return op.executor.Working(task.UID), nil })
		op.executor.Set(name, executor.Progress{
			Cursor: fmt.Sprintf("device-%02d", i), Matched: 100, Succeeded: int64(i + 1), Outcome: executor.OutcomeSuspended,
		})
		waitFor(t, "the next run", func() (bool, any) {
			n := len(op.executor.Runs(task.UID))
			return n >= i+2, n
		})
	}
	want, got := []string{""}, []string{}
	for i := range rounds {
		want = append(want, fmt.Sprintf("device-%02d", i))
	}
	for _, run := range op.executor.Runs(task.UID) {
		got = append(got, run.After)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("where the runs began (-want +got):\n%s", diff)
	}
	op.executor.Set(name, executor.Progress{Cursor: "z", Matched: 100, Succeeded: 100, Outcome: executor.OutcomeServed})
	op.waitPhase(t, task, v1alpha1.TaskPhaseDone)
}

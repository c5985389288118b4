package controllers_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
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

// Zero is not unknown: a task that matches nobody says so in numbers, and not before its
// devices have been counted; nor does a product count devices before it has.
func TestZeroIsTold(t *testing.T) {
	op := run(t, settings{})
	namespace, id := op.namespace(t)
	task := testobj.BatchTask("nobody").In(namespace).Product(id).Publish("event", "close").Obj()
	op.create(t, task)
	stored := func(kind, name string, path ...string) (any, bool) {
		t.Helper()
		u := &unstructured.Unstructured{}
		u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
		if err := op.env.Client.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: name}, u); err != nil {
			t.Fatal(err)
		}
		value, found, err := unstructured.NestedFieldNoCopy(u.Object, append([]string{"status"}, path...)...)
		if err != nil {
			t.Fatal(err)
		}
		return value, found
	}
	op.waitPhase(t, task, v1alpha1.TaskPhaseProcessing)
	if counts, found := stored("BatchTask", "nobody", "devices"); found {
		t.Errorf("before its devices are counted status.devices is %v", counts)
	}
	for field, want := range map[string]any{"percent": int64(0), "retCode": int64(0)} {
		if got, _ := stored("BatchTask", "nobody", field); got != want {
			t.Errorf("status.%s of a task that runs is %v, want %v", field, got, want)
		}
	}
	waitFor(t, "the task to run", func() (bool, any) { return op.executor.Working(task.UID), nil })
	op.executor.Set(client.ObjectKeyFromObject(task), executor.Progress{Outcome: executor.OutcomeServed})
	op.waitPhase(t, task, v1alpha1.TaskPhaseDone)
	want := map[string]any{"matched": int64(0), "succeeded": int64(0), "failed": int64(0), "acknowledged": int64(0)}
	got, _ := stored("BatchTask", "nobody", "devices")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status.devices of a task that matched nobody (-want +got):\n%s", diff)
	}
	if n, _ := stored("Product", "product", "deviceCount"); n != int64(0) {
		t.Errorf("status.deviceCount of a product without devices is %v, want 0", n)
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

package webhook_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/testobj"
	"batchtask.dev/operator/test/system"
)

// burst creates n tasks at once and returns those that were admitted. It fails
// unless all others are refused because of the limit.
func burst(t *testing.T, s *system.System, n int, namespace, id, prefix string) []*v1alpha1.BatchTask {
	t.Helper()
	var mu sync.Mutex
	var admitted []*v1alpha1.BatchTask
	var creating sync.WaitGroup
	for i := range n {
		creating.Go(func() {
			task := testobj.BatchTask(fmt.Sprint(prefix, i)).In(namespace).Product(id).Publish("event", "close").Obj()
			err := s.Client.Create(t.Context(), task)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				admitted = append(admitted, task)
			case !isLimit(err):
				t.Errorf("task %s: %v", task.Name, err)
			}
		})
	}
	creating.Wait()
	return admitted
}

// isLimit reports whether err is the refusal of a task too many, as programs see it.
func isLimit(err error) bool {
	status, ok := err.(apierrors.APIStatus)
	return ok && status.Status().Code == http.StatusForbidden && status.Status().Reason == metav1.StatusReasonForbidden &&
		apierrors.HasStatusCause(err, v1alpha1.CauseTaskLimitExceeded)
}

func TestLimitOfFive(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	checkSlots := system.NeverMoreThan(t, s, 5, &v1alpha1.TaskQuotaList{}, namespace, system.CountSlots)
	checkActive := system.NeverMoreThan(t, s, 5, &v1alpha1.BatchTaskList{}, namespace, system.CountActive)

	admitted := burst(t, s, 200, namespace, id, "task-")
	if len(admitted) != 5 {
		t.Fatalf("%d of 200 tasks were admitted, want 5", len(admitted))
	}
	// Each task is two calls, and the replicas take turns: each defaults and admits 100.
	for i := range s.Served {
		if s.Served[i].Load() < 200 {
			t.Errorf("replica %d answered %d calls only", i, s.Served[i].Load())
		}
	}
	system.WaitFor(t, "the five to run", func() (bool, any) {
		for _, task := range admitted {
			if !s.Executor.Working(task.UID) {
				return false, task.Name
			}
		}
		return true, nil
	})

	// The refusal says who is in the way.
	err := s.Client.Create(t.Context(), testobj.BatchTask("sixth").In(namespace).Product(id).Publish("event", "close").Obj())
	want := fmt.Sprintf("namespace %q may have 5 active tasks (TaskQuota \"default\", spec.maxActiveTasks), and these are waiting or processing: %s",
		namespace, strings.Join(s.Slots(t, namespace), ", "))
	if !isLimit(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("a sixth task: %v\nwant a refusal that says: %s", err, want)
	}

	// Each one that finishes makes room for exactly one.
	for round := range 3 {
		s.Executor.Set(client.ObjectKeyFromObject(admitted[round]), executor.Progress{
			Cursor: "z", Matched: 1, Succeeded: 1, Outcome: executor.OutcomeServed,
		})
		system.WaitFor(t, "the slot of a finished task to be freed", func() (bool, any) {
			slots := s.Slots(t, namespace)
			return len(slots) == 4, slots
		})
		if more := burst(t, s, 20, namespace, id, fmt.Sprintf("round-%d-", round)); len(more) != 1 {
			t.Errorf("%d more tasks were admitted after one had finished, want 1", len(more))
		}
	}
	checkSlots()
	checkActive()
}

func TestLimitWithGeneratedNames(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	for range 5 {
		task := testobj.BatchTask("").In(namespace).Product(id).Publish("event", "close").Obj()
		task.GenerateName = "nightly-"
		if err := s.Client.Create(t.Context(), task); err != nil {
			t.Fatal(err)
		}
	}
	task := testobj.BatchTask("").In(namespace).Product(id).Publish("event", "close").Obj()
	task.GenerateName = "nightly-"
	if err := s.Client.Create(t.Context(), task); !isLimit(err) {
		t.Errorf("a sixth task with a generated name: %v", err)
	}
	system.WaitFor(t, "five tasks to be active", func() (bool, any) {
		active := s.Active(t, namespace)
		return len(active) == 5 && cmp.Equal(active, s.Slots(t, namespace)), active
	})
}

func TestDeletingAnActiveTaskFreesItsSlot(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	admitted := burst(t, s, 6, namespace, id, "task-")
	system.WaitFor(t, "five tasks to be active", func() (bool, any) { return len(s.Active(t, namespace)) == 5, nil })
	if err := s.Client.Delete(t.Context(), admitted[0]); err != nil {
		t.Fatal(err)
	}
	system.WaitFor(t, "its slot to be freed", func() (bool, any) {
		slots := s.Slots(t, namespace)
		return len(slots) == 4, slots
	})
	// A new task of the same name is another task.
	again := testobj.BatchTask(admitted[0].Name).In(namespace).Product(id).Publish("event", "close").Obj()
	if err := s.Client.Create(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	system.WaitFor(t, "it to run", func() (bool, any) { return s.Executor.Working(again.UID), nil })
	if s.Executor.Working(admitted[0].UID) {
		t.Error("the deleted task still runs")
	}
}

func TestDeletingTheTaskQuotaFreesNothing(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	checkActive := system.NeverMoreThan(t, s, 5, &v1alpha1.BatchTaskList{}, namespace, system.CountActive)
	burst(t, s, 5, namespace, id, "task-")
	for round := range 10 {
		ledger := &v1alpha1.TaskQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.TaskQuotaName}}
		if err := s.Client.Delete(t.Context(), ledger); client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		if more := burst(t, s, 10, namespace, id, fmt.Sprintf("more-%d-", round)); len(more) != 0 {
			t.Errorf("%d more tasks were admitted after the TaskQuota had been deleted", len(more))
		}
	}
	system.WaitFor(t, "the five to be active and hold the slots", func() (bool, any) {
		active := s.Active(t, namespace)
		return len(active) == 5 && cmp.Equal(active, s.Slots(t, namespace)), active
	})
	checkActive()
}

func TestNameTaken(t *testing.T) {
	s := system.Run(t)
	namespace, id := s.Namespace(t)
	task := testobj.BatchTask("task").In(namespace).Product(id).Publish("event", "close")
	if err := s.Client.Create(t.Context(), task.Obj()); err != nil {
		t.Fatal(err)
	}
	checkSlots := system.NeverMoreThan(t, s, 1, &v1alpha1.TaskQuotaList{}, namespace, system.CountSlots)
	for range 5 {
		if err := s.Client.Create(t.Context(), task.Obj()); !apierrors.IsAlreadyExists(err) {
			t.Errorf("a second task of one name: %v, want 409 AlreadyExists", err)
		}
	}
	system.WaitFor(t, "its slot to be bound", func() (bool, any) {
		ledger := &v1alpha1.TaskQuota{}
		err := s.Client.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: v1alpha1.TaskQuotaName}, ledger)
		return err == nil && len(ledger.Status.Slots) == 1 && ledger.Status.Slots[0].Bound, ledger.Status
	})
	checkSlots()
}

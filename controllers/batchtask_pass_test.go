package controllers

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/quota"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// behind is a reconciler over the real API server whose cache shows a task as it was
// when it was created.
type behind struct {
	BatchTaskReconciler
	env      *testenv.Env
	executor *testobj.Executor
	ledger   *quota.Ledger
	task     *v1alpha1.BatchTask
	reads    int // of the task, live
}

func newBehind(t *testing.T) *behind {
	t.Helper()
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	product := testobj.Product("product").In(namespace).ID("BEHIND"+strings.ToUpper(strings.TrimPrefix(namespace, "test-"))).Ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady).Obj()
	status := product.Status
	create(t, env, product)
	product.Status = status
	if err := env.Client.Status().Update(t.Context(), product); err != nil {
		t.Fatal(err)
	}
	b := &behind{env: env, executor: &testobj.Executor{}, ledger: quota.NewLedger(env.Client, env.Client, clock.RealClock{})}
	if err := b.ledger.Ensure(t.Context(), namespace); err != nil { // or it would be opened with the task in it
		t.Fatal(err)
	}
	b.task = testobj.BatchTask("task").In(namespace).Product(product.Spec.ProductID).Publish("event", "close").Obj()
	create(t, env, b.task)
	b.BatchTaskReconciler = BatchTaskReconciler{
		Gate: b.ledger, Executor: b.executor, Clock: clock.RealClock{}, Recorder: events.NewFakeRecorder(10),
		Metrics: NewMetrics(prometheus.NewRegistry()), Wake: &Wakeups{},
		Client: interceptor.NewClient(env.Client, interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, name client.ObjectKey, object client.Object, options ...client.GetOption) error {
				if task, ok := object.(*v1alpha1.BatchTask); ok {
					b.task.DeepCopyInto(task)
					return nil
				}
				return c.Get(ctx, name, object, options...)
			},
		}),
		Live: interceptor.NewClient(env.Client, interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, name client.ObjectKey, object client.Object, options ...client.GetOption) error {
				if _, ok := object.(*v1alpha1.BatchTask); ok {
					b.reads++
				}
				return c.Get(ctx, name, object, options...)
			},
		}),
	}
	return b
}

func create(t *testing.T, env *testenv.Env, object client.Object) {
	t.Helper()
	if err := env.Client.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

func (b *behind) reserve(t *testing.T) {
	t.Helper()
	if err := b.ledger.Reserve(t.Context(), b.holder()); err != nil {
		t.Fatal(err)
	}
}

func (b *behind) holder() quota.Holder {
	return quota.Holder{UID: b.task.UID, Namespace: b.task.Namespace, Name: b.task.Name}
}

// slots returns whether the slots of the namespace are bound, by task.
func (b *behind) slots(t *testing.T) map[types.UID]bool {
	t.Helper()
	ledger := testobj.TaskQuota(b.task.Namespace).Obj()
	if err := b.env.Client.Get(t.Context(), client.ObjectKeyFromObject(ledger), ledger); err != nil {
		t.Fatal(err)
	}
	bound := map[types.UID]bool{}
	for _, slot := range ledger.Status.Slots {
		bound[slot.UID] = slot.Bound
	}
	return bound
}

func (b *behind) look(t *testing.T) reconcile.Result {
	t.Helper()
	result, err := b.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(b.task)})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// A new task that holds a slot is begun without being read again.
func TestNewTaskWithSlot(t *testing.T) {
	b := newBehind(t)
	b.reserve(t)
	b.look(t)
	if runs := b.executor.Runs(b.task.UID); len(runs) != 1 {
		t.Errorf("the task has %d runs, want 1", len(runs))
	}
	if !b.slots(t)[b.task.UID] {
		t.Error("its slot is not bound")
	}
	if b.reads != 0 {
		t.Errorf("the task was read live %d times", b.reads)
	}
}

// What only the cache still shows as new is not begun, though it holds a slot.
func TestTaskThatIsNotNewAnyMore(t *testing.T) {
	for _, phase := range []v1alpha1.TaskPhase{v1alpha1.TaskPhaseProcessing, v1alpha1.TaskPhaseDone} {
		t.Run(string(phase), func(t *testing.T) {
			b := newBehind(t)
			b.reserve(t)
			now := b.task.DeepCopy()
			now.Status.Phase = phase
			if err := b.env.Client.Status().Update(t.Context(), now); err != nil {
				t.Fatal(err)
			}
			if result := b.look(t); result.RequeueAfter <= 0 {
				t.Error("it is not looked at again")
			}
			if runs := b.executor.Runs(b.task.UID); len(runs) != 0 {
				t.Errorf("the task has %d runs, want none", len(runs))
			}
			b.task = now // the cache has followed
			b.look(t)
			if runs := b.executor.Runs(b.task.UID); (len(runs) == 1) != (phase == v1alpha1.TaskPhaseProcessing) {
				t.Errorf("a task that is %s has %d runs", phase, len(runs))
			}
		})
	}
}

// For what only the cache shows, no slot is taken.
func TestTaskThatIsGone(t *testing.T) {
	b := newBehind(t)
	if err := b.env.Client.Delete(t.Context(), b.task.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.pass(t.Context(), b.task.DeepCopy()); !errors.Is(err, errStale) {
		t.Errorf("pass: %v, want that the task is gone", err)
	}
	if slots := b.slots(t); len(slots) != 0 {
		t.Errorf("slots were taken: %v", slots)
	}
}

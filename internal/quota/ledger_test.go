package quota

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func holder(namespace, name string) Holder {
	return Holder{UID: types.UID("uid-" + name), Namespace: namespace, Name: name}
}

func read(t *testing.T, env *testenv.Env, namespace string) *v1alpha1.TaskQuota {
	t.Helper()
	ledger := &v1alpha1.TaskQuota{}
	if err := env.Client.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: v1alpha1.TaskQuotaName}, ledger); err != nil {
		t.Fatal(err)
	}
	return ledger
}

// createTask makes a task with a phase, past any webhook.
func createTask(t *testing.T, env *testenv.Env, namespace, name string, phase v1alpha1.TaskPhase) *v1alpha1.BatchTask {
	t.Helper()
	task := testobj.BatchTask(name).In(namespace).Publish("event", "close").Obj()
	if err := env.Client.Create(t.Context(), task); err != nil {
		t.Fatal(err)
	}
	if phase != "" {
		task.Status.Phase = phase
		if err := env.Client.Status().Update(t.Context(), task); err != nil {
			t.Fatal(err)
		}
	}
	return task
}

func nobodyWorks(types.UID) bool { return false }

// Two processes that know nothing of each other take slots at once.
func TestTwoLedgersShareFiveSlots(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	clk := clocktesting.NewFakePassiveClock(time.Now()) // no reservation grows old, however slow the machine is
	ledgers := [2]*Ledger{NewLedger(env.Client, env.Client, clk), NewLedger(env.Client, env.Client, clk)}
	var got, refused atomic.Int64
	var taking sync.WaitGroup
	for i := range 60 {
		taking.Go(func() {
			err := ledgers[i%2].Reserve(t.Context(), holder(namespace, fmt.Sprint(i)))
			var limit *LimitError
			switch {
			case err == nil:
				got.Add(1)
			case errors.As(err, &limit):
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	taking.Wait()
	if got.Load() != 5 || refused.Load() != 55 || len(read(t, env, namespace).Status.Slots) != 5 {
		t.Errorf("%d got a slot and %d did not; the ledger: %s", got.Load(), refused.Load(), slotsOf(read(t, env, namespace)))
	}
}

func TestOpen(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	createTask(t, env, namespace, "done", v1alpha1.TaskPhaseDone)
	for i, phase := range []v1alpha1.TaskPhase{v1alpha1.TaskPhaseWaiting, v1alpha1.TaskPhaseProcessing, v1alpha1.TaskPhaseWaiting, ""} {
		createTask(t, env, namespace, fmt.Sprint("task-", i), phase)
	}
	ledger := NewLedger(env.Client, env.Client, clock.RealClock{})
	if err := ledger.Reserve(t.Context(), holder(namespace, "first")); err != nil {
		t.Fatalf("the fifth slot: %v", err)
	}
	var limit *LimitError
	if err := ledger.Reserve(t.Context(), holder(namespace, "second")); !errors.As(err, &limit) {
		t.Fatalf("the sixth slot: %v, want a LimitError", err)
	}
	if diff := cmp.Diff([]string{"first", "task-0", "task-1", "task-2", "task-3"}, limit.Holders); diff != "" {
		t.Errorf("holders (-want +got):\n%s", diff)
	}
	if err := ledger.Check(t.Context(), namespace); !errors.As(err, &limit) {
		t.Errorf("Check in a full namespace: %v", err)
	}
	if err := ledger.Check(t.Context(), env.Namespace(t)); err != nil {
		t.Errorf("Check in a namespace without a TaskQuota: %v", err)
	}
}

func TestReap(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	clk := clocktesting.NewFakePassiveClock(time.Now().Truncate(time.Second))
	ledger := NewLedger(env.Client, env.Client, clk)
	const grace = 15 * time.Second
	reserve := func(name string, uid types.UID, bind bool) {
		t.Helper()
		h := Holder{UID: uid, Namespace: namespace, Name: name}
		do := ledger.Reserve
		if bind {
			do = ledger.Bind
		}
		if err := do(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	if err := ledger.Ensure(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	active := createTask(t, env, namespace, "active", v1alpha1.TaskPhaseProcessing)
	reserve(active.Name, active.UID, true)
	finished := createTask(t, env, namespace, "finished", v1alpha1.TaskPhaseFailed)
	reserve(finished.Name, finished.UID, true)
	reserve("gone", "uid-gone", true)
	reserve("active", "uid-of-a-task-before", true) // the same name, another object
	reserve("lost", "uid-lost", false)

	reap := func(working func(types.UID) bool) time.Duration {
		t.Helper()
		next, err := ledger.Reap(t.Context(), read(t, env, namespace), grace, working)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	// A deleted task that is still worked on keeps its slot.
	if next := reap(func(uid types.UID) bool { return uid == "uid-gone" }); next != time.Second {
		t.Errorf("Reap wants to look again after %v, want 1s: work on a deleted task goes on", next)
	}
	if diff := cmp.Diff("active:true gone:true lost:false", slotsOf(read(t, env, namespace))); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}
	if next := reap(nobodyWorks); next != grace {
		t.Errorf("Reap wants to look again after %v, want %v", next, grace)
	}
	clk.SetTime(clk.Now().Add(grace - time.Millisecond))
	if next := reap(nobodyWorks); next != time.Millisecond {
		t.Errorf("Reap wants to look again after %v, want 1ms", next)
	}
	if diff := cmp.Diff("active:true lost:false", slotsOf(read(t, env, namespace))); diff != "" {
		t.Errorf("slots within the grace time (-want +got):\n%s", diff)
	}
	// It is bound between the look and the change: it stays.
	seen := read(t, env, namespace)
	clk.SetTime(clk.Now().Add(time.Second))
	reserve("lost", "uid-lost", true)
	if _, err := ledger.Reap(t.Context(), seen, grace, nobodyWorks); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("active:true lost:true", slotsOf(read(t, env, namespace))); diff != "" {
		t.Errorf("slots after a late Bind (-want +got):\n%s", diff)
	}
	if err := ledger.Release(t.Context(), namespace, active.UID, "uid-lost", "uid-nobody"); err != nil {
		t.Fatal(err)
	}
	if got := slotsOf(read(t, env, namespace)); got != "" {
		t.Errorf("after all were released the slots are %s", got)
	}
}

// The ledger is deleted between a read and the write that belongs to it.
func TestDeletedMeanwhile(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	var once sync.Once
	writer := interceptor.NewClient(env.Client, interceptor.Funcs{
		SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, object client.Object, options ...client.SubResourceUpdateOption) error {
			once.Do(func() {
				if err := env.Client.Delete(ctx, object.DeepCopyObject().(client.Object)); err != nil {
					t.Error(err)
				}
			})
			return c.SubResource(sub).Update(ctx, object, options...)
		},
	})
	if err := NewLedger(env.Client, writer, clock.RealClock{}).Bind(t.Context(), holder(namespace, "task")); err != nil {
		t.Fatal(err)
	}
	if got := slotsOf(read(t, env, namespace)); got != "task:true" {
		t.Errorf("the slots are %q", got)
	}
}

// Nothing can be made in a namespace that is being deleted, nor need be.
func TestReleaseInALeavingNamespace(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	if err := env.Client.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		t.Fatal(err)
	}
	ledger := NewLedger(env.Client, env.Client, clock.RealClock{})
	deadline := time.Now().Add(time.Minute)
	for ledger.Bind(t.Context(), holder(namespace, "task")) == nil { // the API server takes a moment to know
		if time.Now().After(deadline) {
			t.Fatal("a slot was bound in a namespace that is being deleted")
		}
		if err := env.Client.Delete(t.Context(), testobj.TaskQuota(namespace).Obj()); err != nil {
			t.Fatal(err)
		}
	}
	if err := ledger.Release(t.Context(), namespace, "uid-task"); err != nil {
		t.Errorf("Release: %v", err)
	}
}

func TestGivesUpWithItsCaller(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	ledger := NewLedger(env.Client, env.Client, clock.RealClock{})
	leave, err := ledger.enter(t.Context(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ledger.Reserve(ctx, holder(namespace, "task")); !errors.Is(err, context.Canceled) {
		t.Errorf("behind another change, with a caller that is gone: %v", err)
	}
	if err := ledger.Reserve(t.Context(), holder(env.Namespace(t), "task")); err != nil {
		t.Errorf("another namespace had to wait: %v", err)
	}
}

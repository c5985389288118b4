package controllers_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/lease"
	"batchtask.dev/operator/internal/quota"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
	"batchtask.dev/operator/test/system"
)

func TestMain(m *testing.M) {
	logf.SetLogger(logr.Discard())
	testenv.Main(m)
}

// operator is the reconcilers at work on the real API server.
type operator struct {
	env      *testenv.Env
	executor *testobj.Executor
	ledger   *quota.Ledger
}

// settings of an operator; zero values stand for those of production, except that
// tasks succeed at once with no device.
type settings struct {
	clock   clock.PassiveClock
	started func(executor.Task) executor.Progress
	grace   time.Duration
	// quarantine is none if it is not set.
	quarantine time.Duration
	// executor makes another executor than the stand-in.
	executor func(t *testing.T, store fleet.Store, wake func(types.NamespacedName)) controllers.Executor
	// store makes another store of the one of Device objects.
	store func(fleet.Store) fleet.Store
}

// run starts an operator that ends with the test.
func run(t *testing.T, set settings) *operator {
	t.Helper()
	env := testenv.Start(t)
	if set.clock == nil {
		set.clock = clock.RealClock{}
	}
	if set.grace == 0 {
		set.grace = quota.DefaultGrace
	}
	mgr, err := ctrl.NewManager(env.Config, ctrl.Options{
		Scheme: testenv.Scheme(), Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
		Cache:      cache.Options{ByObject: map[client.Object]cache.ByObject{&v1alpha1.BatchTask{}: {Transform: controllers.StripFinished}}},
	})
	if err != nil {
		t.Fatalf("making the manager: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	objects, err := kube.New(ctx, mgr.GetCache(), env.Client)
	if err != nil {
		t.Fatal(err)
	}
	var store fleet.Store = objects
	if set.store != nil {
		store = set.store(store)
	}
	wake := &controllers.Wakeups{}
	op := &operator{
		env:      env,
		executor: &testobj.Executor{Notify: wake.Wake, Started: set.started},
		ledger:   quota.NewLedger(env.Client, env.Client, set.clock),
	}
	parts := controllers.Parts{
		Ledger: op.ledger, Store: store, Executor: op.executor, Wake: wake, Clock: set.clock, Grace: set.grace, Quarantine: set.quarantine,
		Metrics: controllers.NewMetrics(prometheus.NewRegistry()),
		Lease:   lease.Sole("operator-" + t.Name()), Stop: func(err error) { t.Errorf("the operator is to end: %v", err) },
	}
	if set.executor != nil {
		parts.Executor = set.executor(t, store, wake.Wake)
	}
	if err := controllers.Setup(ctx, mgr, parts); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-stopped; err != nil {
			t.Errorf("running the manager: %v", err)
		}
	})
	return op
}

// namespace makes a namespace with a product that tasks may run on. The product's
// ID is returned, since it must be the only one in the cluster.
func (op *operator) namespace(t *testing.T) (namespace, productID string) {
	t.Helper()
	namespace = op.env.Namespace(t)
	productID = uniqueID(namespace)
	op.create(t, testobj.Product("product").In(namespace).ID(productID).Obj())
	op.waitProduct(t, namespace, metav1.ConditionTrue, v1alpha1.ReasonProductReady)
	return namespace, productID
}

func (op *operator) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if err := op.env.Client.Create(t.Context(), object); err != nil {
			t.Fatalf("creating %T %s: %v", object, object.GetName(), err)
		}
	}
}

// patch changes an object as it is in the API server.
func (op *operator) patch(t *testing.T, object client.Object, patch string) {
	t.Helper()
	if err := op.env.Client.Patch(t.Context(), object, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		t.Fatalf("patching %T %s: %v", object, object.GetName(), err)
	}
}

// look returns when the reconciler has looked at a task, which waits or has finished, as
// everything is now. One look may be under way already; the next one has ended when a third
// begins.
func (op *operator) look(t *testing.T, task *v1alpha1.BatchTask) {
	t.Helper()
	name := client.ObjectKeyFromObject(task)
	before := op.executor.Looks(name)
	waitFor(t, "the reconciler to look at "+task.Name, func() (bool, any) {
		looks := op.executor.Looks(name) - before
		op.executor.Notify(name)
		return looks >= 3, looks
	})
}

// waitTask waits until a task is as wanted, and returns it.
func (op *operator) waitTask(t *testing.T, name types.NamespacedName, what string, as func(*v1alpha1.BatchTask) bool) *v1alpha1.BatchTask {
	t.Helper()
	task := &v1alpha1.BatchTask{}
	waitFor(t, what, func() (bool, any) {
		if err := op.env.Client.Get(t.Context(), name, task); err != nil {
			return false, err
		}
		return as(task), task.Status
	})
	return task
}

func (op *operator) waitPhase(t *testing.T, task *v1alpha1.BatchTask, phase v1alpha1.TaskPhase) *v1alpha1.BatchTask {
	t.Helper()
	return op.waitTask(t, client.ObjectKeyFromObject(task), task.Name+" to be "+string(phase), func(task *v1alpha1.BatchTask) bool {
		return task.Status.Phase == phase
	})
}

func (op *operator) waitProduct(t *testing.T, namespace string, ready metav1.ConditionStatus, reason string) *v1alpha1.Product {
	t.Helper()
	product := &v1alpha1.Product{}
	waitFor(t, "the product of "+namespace+" to have Ready="+string(ready)+" "+reason, func() (bool, any) {
		if err := op.env.Client.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: "product"}, product); err != nil {
			return false, err
		}
		condition := meta.FindStatusCondition(product.Status.Conditions, v1alpha1.ConditionReady)
		return condition != nil && condition.Status == ready && condition.Reason == reason, product.Status
	})
	return product
}

// slots returns the names of the tasks that hold a slot.
func (op *operator) slots(t *testing.T, namespace string) []string {
	t.Helper()
	ledger := &v1alpha1.TaskQuota{}
	err := op.env.Client.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: v1alpha1.TaskQuotaName}, ledger)
	if err != nil && !apierrors.IsNotFound(err) { // it is made in a moment
		t.Fatalf("reading the TaskQuota of %s: %v", namespace, err)
	}
	return slotNames(ledger)
}

func slotNames(ledger *v1alpha1.TaskQuota) []string {
	names := []string{}
	for _, slot := range ledger.Status.Slots {
		names = append(names, slot.Name)
	}
	slices.Sort(names)
	return names
}

// What tests wait with, and name things by.
var (
	waitFor  = system.WaitFor
	waitUpTo = system.WaitUpTo
	uniqueID = system.UniqueID
)

// history records every revision of the objects of a list.
type history[T client.Object] struct {
	mu     sync.Mutex
	states []T
	latest uint64 // the last revision
	list   func() (client.ObjectList, error)
	stop   func()
}

// record watches from now on until the test ends.
func record[T client.Object](t *testing.T, env *testenv.Env, list client.ObjectList, options ...client.ListOption) *history[T] {
	t.Helper()
	events, err := env.Client.Watch(context.Background(), list, options...)
	if err != nil {
		t.Fatalf("watching %T: %v", list, err)
	}
	h := &history[T]{list: func() (client.ObjectList, error) {
		now := list.DeepCopyObject().(client.ObjectList)
		return now, env.Client.List(t.Context(), now, options...)
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range events.ResultChan() {
			object, ok := event.Object.(T)
			if !ok || event.Type == watch.Bookmark {
				continue
			}
			if event.Type == watch.Deleted {
				now := metav1.Unix(1, 0)
				object.SetDeletionTimestamp(&now)
			}
			h.mu.Lock()
			h.states, h.latest = append(h.states, object), max(h.latest, system.Revision(object))
			h.mu.Unlock()
		}
	}()
	h.stop = sync.OnceFunc(func() {
		events.Stop()
		<-done
	})
	t.Cleanup(h.stop)
	return h
}

// all returns all revisions until now, in their order. The watch may be behind what has
// been read.
func (h *history[T]) all(t *testing.T) []T {
	t.Helper()
	now, err := h.list()
	if err != nil {
		t.Fatal(err)
	}
	var last uint64
	_ = meta.EachListItem(now, func(object runtime.Object) error {
		last = max(last, system.Revision(object.(T)))
		return nil
	})
	waitFor(t, "the watch to tell what has happened", func() (bool, any) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.latest >= last, h.latest
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.states)
}

func readyReason(task *v1alpha1.BatchTask) string {
	if condition := meta.FindStatusCondition(task.Status.Conditions, v1alpha1.ConditionReady); condition != nil {
		return condition.Reason
	}
	return ""
}

// kstatusIs reports whether kstatus says that of the task.
func kstatusIs(t *testing.T, task *v1alpha1.BatchTask, want status.Status) bool {
	t.Helper()
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(task)
	if err != nil {
		t.Fatal(err)
	}
	result, err := status.Compute(&unstructured.Unstructured{Object: content})
	if err != nil {
		t.Fatalf("kstatus: %v", err)
	}
	return result.Status == want
}

// parallel calls do for 0 to n-1, so many at a time.
func parallel(workers, n int, do func(i int)) {
	next := make(chan int)
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	working.Wait()
}

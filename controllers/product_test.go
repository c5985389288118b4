package controllers_test

import (
	"context"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// neverBothReady goes through all revisions in their order and fails when two
// products of one ID were Ready at the same time.
func neverBothReady(t *testing.T, revisions []*v1alpha1.Product) {
	t.Helper()
	ready := map[string]map[string]bool{} // by product ID, then namespace
	for _, p := range revisions {
		owners := ready[p.Spec.ProductID]
		if owners == nil {
			owners = map[string]bool{}
			ready[p.Spec.ProductID] = owners
		}
		if delete(owners, p.Namespace); product.Ready(p) && p.DeletionTimestamp.IsZero() {
			owners[p.Namespace] = true
		}
		if len(owners) > 1 {
			t.Errorf("at revision %s, product ID %s is Ready in %d namespaces: %v", p.ResourceVersion, p.Spec.ProductID, len(owners), owners)
		}
	}
}

func TestProductIDBelongsToTheOldest(t *testing.T) {
	op := run(t, settings{})
	first, id := op.namespace(t)
	watched := record[*v1alpha1.Product](t, op.env, &v1alpha1.ProductList{}, client.MatchingFields{product.FieldProductID: id})
	made := op.waitProduct(t, first, metav1.ConditionTrue, v1alpha1.ReasonProductReady).CreationTimestamp
	// Ages are compared in whole seconds.
	waitFor(t, "the next second", func() (bool, any) { return time.Now().Unix() > made.Unix(), nil })
	second := op.env.Namespace(t)
	op.create(t, testobj.Product("product").In(second).ID(id).Obj())
	op.waitProduct(t, second, metav1.ConditionFalse, v1alpha1.ReasonProductIDConflict)

	// A task that gets past the webhook is held up, and starts when its product
	// takes over.
	task := testobj.BatchTask("task").In(second).Product(id).Publish("event", "close").Obj()
	op.create(t, task)
	op.waitTask(t, client.ObjectKeyFromObject(task), "the task to be held up", func(task *v1alpha1.BatchTask) bool {
		return readyReason(task) == v1alpha1.ReasonProductNotReady
	})
	if runs := op.executor.Runs(task.UID); len(runs) > 0 {
		t.Error("a task runs on a product ID that belongs to another namespace")
	}
	older := op.waitProduct(t, first, metav1.ConditionTrue, v1alpha1.ReasonProductReady)
	if err := op.env.Client.Delete(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	op.waitProduct(t, second, metav1.ConditionTrue, v1alpha1.ReasonProductReady)
	waitFor(t, "the task to run", func() (bool, any) { return len(op.executor.Runs(task.UID)) == 1, nil })
	neverBothReady(t, watched.all(t))
}

// Products that are made in the same second have no order of age, and the cache
// can show one before it shows what was written about the other.
func TestProductsMadeTogetherAreNeverBothReady(t *testing.T) {
	op := run(t, settings{})
	watched := record[*v1alpha1.Product](t, op.env, &v1alpha1.ProductList{})
	const pairs = 12
	var namespaces [pairs][3]string
	for i := range pairs {
		for j := range namespaces[i] {
			namespaces[i][j] = op.env.Namespace(t)
		}
	}
	var creating sync.WaitGroup
	for i := range pairs {
		for _, namespace := range namespaces[i] {
			creating.Go(func() {
				p := testobj.Product("product").In(namespace).ID(uniqueID(namespaces[i][0])).Obj()
				if err := op.env.Client.Create(t.Context(), p); err != nil {
					t.Errorf("creating a product: %v", err)
				}
			})
		}
	}
	creating.Wait()
	for i := range pairs {
		waitFor(t, "one of the products to be Ready and the others not", func() (bool, any) {
			var list v1alpha1.ProductList
			if err := op.env.Client.List(t.Context(), &list, client.MatchingFields{product.FieldProductID: uniqueID(namespaces[i][0])}); err != nil {
				return false, err
			}
			ready := 0
			for j := range list.Items {
				if len(list.Items[j].Status.Conditions) == 0 {
					return false, list.Items[j].Name
				}
				if product.Ready(&list.Items[j]) {
					ready++
				}
			}
			return ready == 1, ready
		})
	}
	neverBothReady(t, watched.all(t))
}

func TestProductCountsItsDevices(t *testing.T) {
	op := run(t, settings{})
	namespace, id := op.namespace(t)
	op.create(t,
		testobj.Device("a").In(namespace).Product(id).Obj(),
		testobj.Device("b").In(namespace).Product(id).Disabled().Obj(),
		testobj.Device("c").In(namespace).Product("other").Obj(),
	)
	waitFor(t, "the product to count two devices", func() (bool, any) {
		p := op.waitProduct(t, namespace, metav1.ConditionTrue, v1alpha1.ReasonProductReady)
		return ptr.Deref(p.Status.DeviceCount, -1) == 2, p.Status
	})
}

// A task whose product is deleted while it runs stops, and one that is due then
// fails.
func TestProductDeleted(t *testing.T) {
	op := run(t, settings{})
	namespace, id := op.namespace(t)
	running := testobj.BatchTask("running").In(namespace).Product(id).Publish("event", "close").Obj()
	op.create(t, running)
	waitFor(t, "the task to run", func() (bool, any) { return op.executor.Working(running.UID), nil })
	op.executor.Set(client.ObjectKeyFromObject(running), executor.Progress{Cursor: "b", Matched: 5, Succeeded: 2})
	if err := op.env.Client.Delete(t.Context(), testobj.Product("product").In(namespace).Obj()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the run to be suspended", func() (bool, any) { return !op.executor.Working(running.UID), nil })
	held := op.waitTask(t, client.ObjectKeyFromObject(running), "the task to be held up", func(task *v1alpha1.BatchTask) bool {
		return readyReason(task) == v1alpha1.ReasonProductNotReady && task.Status.Checkpoint != nil
	})
	if held.Status.Checkpoint.Cursor != "b" || held.Status.Counts().Succeeded != 2 {
		t.Errorf("the task is held up at %+v with %+v, want at b with 2 succeeded", held.Status.Checkpoint, held.Status.Counts())
	}
	due := testobj.BatchTask("due").In(namespace).Product(id).Publish("event", "close").Obj()
	op.create(t, due)
	failed := op.waitPhase(t, due, v1alpha1.TaskPhaseFailed)
	if got := readyReason(failed); got != v1alpha1.ReasonProductNotFound {
		t.Errorf("the task that was due failed with reason %s, want %s", got, v1alpha1.ReasonProductNotFound)
	}
	if failed.Status.RetCode != 10004 {
		t.Errorf("its retCode is %d, want 10004", failed.Status.RetCode)
	}
}

// A product does not become Ready while the cache does not show yet that another one of
// its namespace with its ID was made Ready.
func TestProductClaimPastAStaleCache(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	id := uniqueID(namespace)
	stale := interceptor.NewClient(env.Client, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			if err := c.List(ctx, list, options...); err != nil {
				return err
			}
			if products, ok := list.(*v1alpha1.ProductList); ok {
				for i := range products.Items {
					products.Items[i].Status = v1alpha1.ProductStatus{}
				}
			}
			return nil
		},
	})
	claim := &v1alpha1.ProductIDClaim{
		ObjectMeta: metav1.ObjectMeta{Name: product.ClaimName(id)},
		Spec:       v1alpha1.ProductIDClaimSpec{ProductID: id, Namespace: namespace},
	}
	if err := env.Client.Create(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"first", "second"} {
		if err := env.Client.Create(t.Context(), testobj.Product(name).In(namespace).ID(id).Obj()); err != nil {
			t.Fatal(err)
		}
	}
	var list v1alpha1.ProductList
	if err := env.Client.List(t.Context(), &list, client.MatchingFields{product.FieldProductID: id}); err != nil {
		t.Fatal(err)
	}
	owner := product.Owner(list.Items)
	for i := range list.Items {
		if rival := &list.Items[i]; rival.UID != owner.UID {
			rival.Status.Conditions = testobj.Product("").Ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady).Obj().Status.Conditions
			if err := env.Client.Status().Update(t.Context(), rival); err != nil {
				t.Fatal(err)
			}
		}
	}
	reconciler := &controllers.ProductReconciler{
		Client: stale, Live: env.Client, Store: noDevices{}, Clock: clock.RealClock{}, Recorder: events.NewFakeRecorder(10),
	}
	if _, err := reconciler.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(owner)}); err != nil {
		t.Fatal(err)
	}
	if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(owner), owner); err != nil {
		t.Fatal(err)
	}
	if product.Ready(owner) {
		t.Error("both products are Ready")
	}
}

// noDevices is a fleet without devices.
type noDevices struct{ fleet.Store }

func (noDevices) Total(context.Context, fleet.Product) (int64, error) { return 0, nil }

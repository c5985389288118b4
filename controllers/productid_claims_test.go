package controllers_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// claim waits until the claim of an ID is as wanted, and returns it; nil for none.
func (op *operator) claim(t *testing.T, id, what string, as func(*v1alpha1.ProductIDClaim) bool) *v1alpha1.ProductIDClaim {
	t.Helper()
	claim := &v1alpha1.ProductIDClaim{}
	waitFor(t, "the claim of "+id+" to be "+what, func() (bool, any) {
		claim = &v1alpha1.ProductIDClaim{}
		err := op.env.Client.Get(t.Context(), client.ObjectKey{Name: product.ClaimName(id)}, claim)
		if apierrors.IsNotFound(err) {
			claim = nil
		} else if err != nil {
			t.Fatal(err)
		}
		return as(claim), claim
	})
	return claim
}

func unused(c *v1alpha1.ProductIDClaim) bool { return c != nil && c.Status.UnusedSince != nil }
func inUse(c *v1alpha1.ProductIDClaim) bool  { return c != nil && c.Status.UnusedSince == nil }

func (op *operator) deleteProduct(t *testing.T, namespace string) {
	t.Helper()
	if err := op.env.Client.Delete(t.Context(), testobj.Product("product").In(namespace).Obj()); err != nil {
		t.Fatal(err)
	}
}

// notReady fails if a product was Ready at any revision.
func notReady(t *testing.T, revisions []*v1alpha1.Product, namespace string) {
	t.Helper()
	for _, p := range revisions {
		if p.Namespace == namespace && product.Ready(p) {
			t.Errorf("the product of the other namespace was Ready at revision %s", p.ResourceVersion)
		}
	}
}

// An owner that deletes its product and applies it again has its ID at once, however long
// another namespace has waited for it.
func TestProductIDOutlivesItsProduct(t *testing.T) {
	op := run(t, settings{quarantine: time.Hour})
	victim, id := op.namespace(t)
	watched := record[*v1alpha1.Product](t, op.env, &v1alpha1.ProductList{}, client.MatchingFields{product.FieldProductID: id})
	other := op.env.Namespace(t)
	op.create(t, testobj.Product("product").In(other).ID(id).Obj())
	op.waitProduct(t, other, metav1.ConditionFalse, v1alpha1.ReasonProductIDConflict)

	op.deleteProduct(t, victim)
	op.claim(t, id, "marked", unused)
	waitFor(t, "the other to be told how long the ID is kept", func() (bool, any) {
		p := op.waitProduct(t, other, metav1.ConditionFalse, v1alpha1.ReasonProductIDConflict)
		message := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady).Message
		return strings.Contains(message, "is kept until ") && strings.Contains(message, "kubectl delete productidclaim "+product.ClaimName(id)) &&
			!strings.Contains(message, victim), message
	})
	op.create(t, testobj.Product("product").In(victim).ID(id).Obj())
	op.waitProduct(t, victim, metav1.ConditionTrue, v1alpha1.ReasonProductReady)
	op.claim(t, id, "in use", inUse)
	revisions := watched.all(t)
	neverBothReady(t, revisions)
	notReady(t, revisions, other)
}

// An administrator releases an ID that is kept; one that is in use comes back to its owner.
func TestProductIDReleased(t *testing.T) {
	op := run(t, settings{quarantine: time.Hour})
	owner, id := op.namespace(t)
	watched := record[*v1alpha1.Product](t, op.env, &v1alpha1.ProductList{}, client.MatchingFields{product.FieldProductID: id})
	other := op.env.Namespace(t)
	op.create(t, testobj.Product("product").In(other).ID(id).Obj())
	op.waitProduct(t, other, metav1.ConditionFalse, v1alpha1.ReasonProductIDConflict)

	used := op.claim(t, id, "made", inUse)
	if err := op.env.Client.Delete(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	again := op.claim(t, id, "made again", func(c *v1alpha1.ProductIDClaim) bool { return inUse(c) && c.UID != used.UID })
	if again.Spec.Namespace != owner {
		t.Errorf("the claim of a product that is Ready came back for namespace %s, want %s", again.Spec.Namespace, owner)
	}
	op.waitProduct(t, owner, metav1.ConditionTrue, v1alpha1.ReasonProductReady)

	op.deleteProduct(t, owner)
	if err := op.env.Client.Delete(t.Context(), op.claim(t, id, "marked", unused)); err != nil {
		t.Fatal(err)
	}
	op.waitProduct(t, other, metav1.ConditionTrue, v1alpha1.ReasonProductReady)
	neverBothReady(t, watched.all(t))
}

// What comes and goes, with no quarantine at all, never makes two Ready.
func TestProductsThatComeAndGoAreNeverBothReady(t *testing.T) {
	op := run(t, settings{})
	namespaces := []string{op.env.Namespace(t), op.env.Namespace(t), op.env.Namespace(t)}
	id := uniqueID(namespaces[0])
	watched := record[*v1alpha1.Product](t, op.env, &v1alpha1.ProductList{}, client.MatchingFields{product.FieldProductID: id})
	parallel(3, 3, func(i int) {
		for range 15 {
			p := testobj.Product("product").In(namespaces[i]).ID(id).Obj()
			if err := op.env.Client.Create(t.Context(), p); err != nil {
				t.Errorf("create: %v", err)
			}
			if err := op.env.Client.Delete(t.Context(), p); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
	})
	for _, namespace := range namespaces {
		op.create(t, testobj.Product("product").In(namespace).ID(id).Obj())
	}
	waitFor(t, "one to be Ready", func() (bool, any) {
		found, err := product.Finder{Reader: op.env.Client}.Namespace(t.Context(), id)
		if err != nil || found == "" {
			return false, err
		}
		p := &v1alpha1.Product{}
		err = op.env.Client.Get(t.Context(), client.ObjectKey{Namespace: found, Name: "product"}, p)
		return err == nil && product.Ready(p), p.Status
	})
	neverBothReady(t, watched.all(t))
}

// A claim is not deleted when a product has come between the look and the deletion.
func TestClaimOfAProductThatComesLate(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	id := uniqueID(namespace)
	claim := &v1alpha1.ProductIDClaim{
		ObjectMeta: metav1.ObjectMeta{Name: product.ClaimName(id)},
		Spec:       v1alpha1.ProductIDClaimSpec{ProductID: id, Namespace: namespace},
	}
	if err := env.Client.Create(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	claim.Status.UnusedSince = &metav1.Time{Time: time.Now().Add(-time.Hour)}
	if err := env.Client.Status().Update(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	products := &controllers.ProductReconciler{
		Client: env.Client, Live: env.Client, Store: noDevices{}, Clock: clock.RealClock{}, Recorder: events.NewFakeRecorder(10),
	}
	late := interceptor.NewClient(env.Client, interceptor.Funcs{
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, options ...client.DeleteOption) error {
			p := testobj.Product("product").In(namespace).ID(id).Obj()
			if err := env.Client.Create(ctx, p); err != nil {
				t.Error(err)
			}
			if _, err := products.Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(p)}); err != nil {
				t.Error(err)
			}
			return c.Delete(ctx, obj, options...)
		},
	})
	reconciler := &controllers.ProductIDClaimReconciler{Client: late, Live: env.Client, Clock: clock.RealClock{}}
	if _, err := reconciler.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(claim)}); err != nil {
		t.Fatal(err)
	}
	p := testobj.Product("product").In(namespace).Obj()
	if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(p), p); err != nil || !product.Ready(p) {
		t.Fatalf("the product is not Ready: %v, %+v", err, p.Status)
	}
	if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(claim), claim); err != nil || claim.Status.UnusedSince != nil {
		t.Errorf("the claim of a product that is Ready is gone or marked: %v, %+v", err, claim.Status)
	}
}

// At an upgrade from a version without claims, what is Ready is claimed first, whoever is
// older and whatever the limit.
func TestClaimsAtAnUpgrade(t *testing.T) {
	env := testenv.Start(t)
	older, owner := env.Namespace(t), env.Namespace(t)
	id := uniqueID(owner)
	limit := testobj.TaskQuota(owner).Obj()
	limit.Spec.MaxProductIDs = ptr.To[int32](0)
	waiting, ready := testobj.Product("product").In(older).ID(id).Obj(), testobj.Product("product").In(owner).ID(id).Obj()
	for _, o := range []client.Object{limit, waiting, ready} {
		if err := env.Client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	ready.Status.Conditions = testobj.Product("").Ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady).Obj().Status.Conditions
	if err := env.Client.Status().Update(t.Context(), ready); err != nil {
		t.Fatal(err)
	}
	watched := record[*v1alpha1.Product](t, env, &v1alpha1.ProductList{}, client.MatchingFields{product.FieldProductID: id})
	op := run(t, settings{quarantine: time.Hour})
	claim := op.claim(t, id, "made", inUse)
	if claim.Spec.Namespace != owner {
		t.Errorf("claimed for %s, want %s, whose product is Ready", claim.Spec.Namespace, owner)
	}
	op.waitProduct(t, older, metav1.ConditionFalse, v1alpha1.ReasonProductIDConflict)
	revisions := watched.all(t)
	neverBothReady(t, revisions)
	notReady(t, revisions, older)
}

// A product that is Ready has its ID until it is gone, also while a finalizer of its own
// namespace keeps it: tasks run on it.
func TestProductIDOfOneThatIsBeingDeleted(t *testing.T) {
	env := testenv.Start(t)
	owner, other := env.Namespace(t), env.Namespace(t)
	id := uniqueID(owner)
	ready, waiting := testobj.Product("product").In(owner).ID(id).Obj(), testobj.Product("product").In(other).ID(id).Obj()
	ready.Finalizers = []string{"example.com/kept"}
	for _, o := range []client.Object{ready, waiting} {
		if err := env.Client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	ready.Status.Conditions = testobj.Product("").Ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady).Obj().Status.Conditions
	if err := env.Client.Status().Update(t.Context(), ready); err != nil {
		t.Fatal(err)
	}
	if err := env.Client.Delete(t.Context(), ready); err != nil {
		t.Fatal(err)
	}
	products := &controllers.ProductReconciler{
		Client: env.Client, Live: env.Client, Store: noDevices{}, Clock: clock.RealClock{}, Recorder: events.NewFakeRecorder(10),
	}
	want := func(when string, want bool) {
		t.Helper()
		if _, err := products.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(waiting)}); err != nil {
			t.Fatal(err)
		}
		if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(waiting), waiting); err != nil || product.Ready(waiting) != want {
			t.Errorf("%s the other product is Ready: %t, want %t (error %v)", when, product.Ready(waiting), want, err)
		}
	}
	want("while the first is being deleted", false)
	if err := env.Client.Patch(t.Context(), ready, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))); err != nil {
		t.Fatal(err)
	}
	want("when the first is gone", true)
}

// A namespace claims no more IDs than its limit, those that are kept included, and goes on
// when the limit is raised or one is released.
func TestLimitOfProductIDs(t *testing.T) {
	op := run(t, settings{quarantine: time.Hour})
	namespace := op.env.Namespace(t)
	id := func(i int) string { return fmt.Sprintf("%sx%d", uniqueID(namespace), i) }
	quota := testobj.TaskQuota(namespace).Obj()
	quota.Spec.MaxProductIDs = ptr.To[int32](3)
	op.create(t, quota)
	named := func(i int) *v1alpha1.Product {
		return testobj.Product(fmt.Sprint("p", i)).In(namespace).ID(id(i)).Obj()
	}
	waitReasons := func(ready, limited int) {
		t.Helper()
		waitFor(t, fmt.Sprintf("%d to be Ready and %d over the limit", ready, limited), func() (bool, any) {
			var list v1alpha1.ProductList
			if err := op.env.Client.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
				return false, err
			}
			got := map[string]int{}
			for i := range list.Items {
				if c := meta.FindStatusCondition(list.Items[i].Status.Conditions, v1alpha1.ConditionReady); c != nil {
					got[c.Reason]++
				}
			}
			return got[v1alpha1.ReasonProductReady] == ready && got[v1alpha1.ReasonProductIDLimit] == limited, got
		})
	}
	parallel(6, 6, func(i int) { op.create(t, named(i)) })
	waitReasons(3, 3)
	var list v1alpha1.ProductList
	if err := op.env.Client.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		if p := &list.Items[i]; product.Ready(p) {
			if err := op.env.Client.Delete(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			// Kept for it, so no other may have one instead.
			kept := op.claim(t, p.Spec.ProductID, "kept", unused)
			waitReasons(2, 3)
			if err := op.env.Client.Delete(t.Context(), kept); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	waitReasons(3, 2)
	op.patch(t, quota, `{"spec":{"maxProductIDs":10}}`)
	waitReasons(5, 0)
}

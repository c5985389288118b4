package controllers

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/product"
)

// DefaultQuarantine is how long a product ID is kept for a namespace whose Product is gone.
const DefaultQuarantine = 24 * time.Hour

// ProductIDClaimReconciler marks the claims that no product uses, and deletes them after
// the quarantine. Why that never leads to two products that are Ready: see claims.
type ProductIDClaimReconciler struct {
	Client     client.Client
	Live       client.Reader // reads past every cache
	Clock      clock.PassiveClock
	Quarantine time.Duration
}

// Reconcile takes a claim one step further.
func (r *ProductIDClaimReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	claim := &v1alpha1.ProductIDClaim{}
	if err := r.Client.Get(ctx, req.NamespacedName, claim); err != nil || !claim.DeletionTimestamp.IsZero() {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	used, err := r.used(ctx, claim)
	since := claim.Status.UnusedSince
	switch {
	case err != nil:
		return reconcile.Result{}, err
	case used && since == nil:
		return reconcile.Result{}, nil
	case used:
		return retryConflict(markUsed(ctx, r.Client, claim))
	case since == nil:
		now := metav1.NewTime(r.Clock.Now())
		// It comes back when the cache has the mark.
		return retryConflict(mark(ctx, r.Client, claim, &now))
	}
	if left := since.Add(r.Quarantine).Sub(r.Clock.Now()); left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	logf.FromContext(ctx).Info("Releasing a product ID that no Product has had for long", "productID", claim.Spec.ProductID, "unusedSince", since)
	return retryConflict(r.Client.Delete(ctx, claim, client.Preconditions{UID: &claim.UID, ResourceVersion: &claim.ResourceVersion}))
}

// used reports whether the claim's namespace has a product of its ID. That there is none
// never rests on a cache.
func (r *ProductIDClaimReconciler) used(ctx context.Context, claim *v1alpha1.ProductIDClaim) (bool, error) {
	for _, reader := range []client.Reader{r.Client, r.Live} {
		var list v1alpha1.ProductList
		if err := reader.List(ctx, &list, client.InNamespace(claim.Spec.Namespace), client.MatchingFields{product.FieldProductID: claim.Spec.ProductID}); err != nil {
			return false, fmt.Errorf("list products with ID %q in namespace %q: %w", claim.Spec.ProductID, claim.Spec.Namespace, err)
		}
		if len(list.Items) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// markUsed takes the mark of a claim away, unless somebody has changed it meanwhile.
func markUsed(ctx context.Context, c client.Client, claim *v1alpha1.ProductIDClaim) error {
	return mark(ctx, c, claim, nil)
}

func mark(ctx context.Context, c client.Client, claim *v1alpha1.ProductIDClaim, since *metav1.Time) error {
	before := claim.DeepCopy()
	claim.Status.UnusedSince = since
	if err := c.Status().Patch(ctx, claim, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("mark the claim of product ID %q: %w", claim.Spec.ProductID, err)
	}
	return nil
}

// SetupWithManager registers the reconciler. The cache must have the index of
// FieldProductID on Products.
func (r *ProductIDClaimReconciler) SetupWithManager(mgr ctrl.Manager) error {
	byID := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, obj client.Object) []reconcile.Request {
		p, ok := obj.(*v1alpha1.Product)
		if !ok {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: product.ClaimName(p.Spec.ProductID)}}}
	})
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.ProductIDClaim{}).
		Watches(&v1alpha1.Product{}, byID, builder.WithPredicates(deleted)).
		WithOptions(controller.Options{MaxConcurrentReconciles: claimWorkers}).
		Complete(r)
}

// claimWorkers is how many product IDs are decided on at once. A live list may wait 100 ms
// in an API server.
const claimWorkers = 8

// deleted is the end of an object. That a product comes is seen by who judges it.
var deleted = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false },
	UpdateFunc: func(event.UpdateEvent) bool { return false },
}

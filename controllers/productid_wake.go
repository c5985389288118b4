package controllers

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/product"
)

// ofClaim wakes the products that a change of a claim is news for: those with its ID, and
// when it is gone also those of its namespace that had reached the limit.
func (r *ProductReconciler) ofClaim() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	changed := func(ctx context.Context, obj client.Object, queue queue) {
		claim, ok := obj.(*v1alpha1.ProductIDClaim)
		if !ok {
			return
		}
		for _, p := range r.list(ctx, client.MatchingFields{product.FieldProductID: claim.Spec.ProductID}) {
			// What is Ready by this claim has made it.
			if !product.Ready(&p) || !holds(claim, &p) {
				queue.Add(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&p)})
			}
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, queue queue) { changed(ctx, e.Object, queue) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, queue queue) { changed(ctx, e.ObjectNew, queue) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, queue queue) {
			claim, ok := e.Object.(*v1alpha1.ProductIDClaim)
			if !ok {
				return
			}
			for _, p := range r.list(ctx, client.MatchingFields{product.FieldProductID: claim.Spec.ProductID}) {
				queue.Add(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&p)})
			}
			for _, request := range r.limited(ctx, claim.Spec.Namespace) {
				queue.Add(request)
			}
		},
	}
}

// ofQuota wakes the products of a namespace that had reached the limit.
func (r *ProductReconciler) ofQuota(ctx context.Context, obj client.Object) []reconcile.Request {
	return r.limited(ctx, obj.GetNamespace())
}

func (r *ProductReconciler) limited(ctx context.Context, namespace string) (requests []reconcile.Request) {
	for _, p := range r.list(ctx, client.InNamespace(namespace)) {
		if reasonOf(&p) == v1alpha1.ReasonProductIDLimit {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&p)})
		}
	}
	return requests
}

func (r *ProductReconciler) list(ctx context.Context, options ...client.ListOption) []v1alpha1.Product {
	var products v1alpha1.ProductList
	if err := r.Client.List(ctx, &products, options...); err != nil {
		logf.FromContext(ctx).Error(err, "Cannot list products")
	}
	return products.Items
}

// reasonOf returns the reason of the Ready condition.
func reasonOf(p *v1alpha1.Product) string {
	if ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); ready != nil {
		return ready.Reason
	}
	return ""
}

// verdictChanged leaves out what does not concern other products of the ID.
var verdictChanged = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld.(*v1alpha1.Product), e.ObjectNew.(*v1alpha1.Product) //nolint:forcetypeassert // watched as such
		return product.Ready(before) != product.Ready(after) || reasonOf(before) != reasonOf(after) ||
			before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero()
	},
}

// keyed is a lock for each key. The zero value is ready.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*keyedLock
}

type keyedLock struct {
	sync.Mutex
	users int
}

// lock waits until nobody else has the lock of this key.
func (k *keyed) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyedLock{}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
}

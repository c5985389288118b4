package controllers

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
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
	"sigs.k8s.io/controller-runtime/pkg/source"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/product"
)

// +kubebuilder:rbac:groups=iot.batchtask.dev,resources=products,verbs=get;list;watch
// +kubebuilder:rbac:groups=iot.batchtask.dev,resources=products/status,verbs=patch
// +kubebuilder:rbac:groups=iot.batchtask.dev,resources=devices,verbs=get;list;watch
// +kubebuilder:rbac:groups=iot.batchtask.dev,resources=devices/status,verbs=patch

const (
	// countDelay is how long changes of devices are gathered before they are counted.
	countDelay = time.Second
)

// ProductReconciler decides to which Product each product ID belongs and counts
// devices. It must be the only one: see claims.
type ProductReconciler struct {
	Client   client.Client
	Live     client.Reader // reads past every cache
	Store    fleet.Store
	Clock    clock.PassiveClock
	Recorder events.EventRecorder
	// Quarantine is how long an ID is kept for a namespace whose product is gone.
	Quarantine time.Duration

	once   sync.Once
	claims claims
	ids    keyed

	counts *deviceCounts // of fleets in databases; see SetupWithManager
}

// Reconcile brings the status of a product up to date.
func (r *ProductReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	r.once.Do(func() {
		r.claims.client, r.claims.live, r.claims.clock, r.claims.quarantine = r.Client, r.Live, r.Clock, r.Quarantine
	})
	p := &v1alpha1.Product{}
	if err := r.Client.Get(ctx, req.NamespacedName, p); err != nil {
		if apierrors.IsNotFound(err) && r.counts != nil {
			r.counts.forget(req.NamespacedName)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !p.DeletionTimestamp.IsZero() {
		return reconcile.Result{}, nil
	}
	status := p.Status.DeepCopy()
	status.ObservedGeneration = p.Generation
	devices := r.devices(ctx, p)
	// One ID is decided on by one goroutine at a time, until that is written.
	defer r.ids.lock(p.Spec.ProductID)()
	ready, claimErr := r.claims.judge(ctx, p)
	if claimErr != nil {
		return retryConflict(claimErr)
	}
	if devices.early && ready.Status == metav1.ConditionTrue {
		return reconcile.Result{RequeueAfter: devices.again}, nil // there is nothing to tell yet
	}
	switch {
	case devices.total != nil:
		status.DeviceCount = devices.total
	case ready.Status == metav1.ConditionTrue: // an ID that belongs to another comes first
		ready = metav1.Condition{Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonFleetUnavailable, Message: "The devices cannot be read: " + devices.trouble.Error()}
	}
	r.setReady(p, status, ready)
	if err := r.write(ctx, p, status); err != nil {
		return retryConflict(err)
	}
	if p.Spec.Fleet.Type != v1alpha1.FleetTypePostgres {
		return reconcile.Result{}, devices.trouble // a fleet that cannot be read is tried again
	}
	return reconcile.Result{RequeueAfter: devices.again}, nil
}

// setReady sets Ready, and Stalled for what waiting does not mend.
func (r *ProductReconciler) setReady(p *v1alpha1.Product, status *v1alpha1.ProductStatus, ready metav1.Condition) {
	stalled := ready
	ready.Type, stalled.Type = v1alpha1.ConditionReady, v1alpha1.ConditionStalled
	stalled.Status = metav1.ConditionFalse
	if ready.Reason == v1alpha1.ReasonProductIDConflict || ready.Reason == v1alpha1.ReasonProductIDLimit {
		stalled.Status = metav1.ConditionTrue
	}
	for _, condition := range []metav1.Condition{ready, stalled} {
		condition.ObservedGeneration = p.Generation
		setCondition(&status.Conditions, r.Clock.Now(), condition)
	}
}

func (r *ProductReconciler) write(ctx context.Context, p *v1alpha1.Product, status *v1alpha1.ProductStatus) error {
	if equality.Semantic.DeepEqual(&p.Status, status) {
		return nil
	}
	before := p.DeepCopy()
	p.Status = *status
	if err := r.Client.Status().Patch(ctx, p, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	now := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
	if old := meta.FindStatusCondition(before.Status.Conditions, v1alpha1.ConditionReady); old == nil || old.Reason != now.Reason {
		eventType := corev1.EventTypeNormal
		if now.Status != metav1.ConditionTrue {
			eventType = corev1.EventTypeWarning
		}
		r.Recorder.Eventf(p, nil, eventType, now.Reason, "Claim", "%s", eventNote(now.Message))
	}
	return nil
}

// SetupWithManager registers the reconciler. The cache must have the index of
// FieldProductID on Products, and that of FieldClaimNamespace on ProductIDClaims.
func (r *ProductReconciler) SetupWithManager(mgr ctrl.Manager) error {
	r.counts = newDeviceCounts(r.Store, r.Clock)
	if err := mgr.Add(r.counts); err != nil {
		return fmt.Errorf("add what counts devices: %w", err)
	}
	return ctrl.NewControllerManagedBy(mgr).
		// Not of its own writes: a count that changes each time would lead to the next.
		For(&v1alpha1.Product{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Product{}, handler.EnqueueRequestsFromMapFunc(r.sameID), builder.WithPredicates(verdictChanged)).
		Watches(&v1alpha1.ProductIDClaim{}, r.ofClaim()).
		Watches(&v1alpha1.TaskQuota{}, handler.EnqueueRequestsFromMapFunc(r.ofQuota), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Device{}, r.countLater()).
		WithOptions(controller.Options{MaxConcurrentReconciles: claimWorkers}).
		WatchesRawSource(source.Func(r.counts.wake.start)).
		Complete(r)
}

// sameID wakes every product with the ID of one that has changed or is gone.
func (r *ProductReconciler) sameID(ctx context.Context, obj client.Object) []reconcile.Request {
	changed, ok := obj.(*v1alpha1.Product)
	if !ok {
		return nil
	}
	return r.productsWith(ctx, changed.Spec.ProductID, client.ListOptions{})
}

func (r *ProductReconciler) productsWith(ctx context.Context, productID string, in client.ListOptions) []reconcile.Request {
	var products v1alpha1.ProductList
	if err := r.Client.List(ctx, &products, &in, client.MatchingFields{product.FieldProductID: productID}); err != nil {
		logf.FromContext(ctx).Error(err, "Cannot list products by their ID", "productID", productID)
		return nil
	}
	requests := make([]reconcile.Request, len(products.Items))
	for i := range products.Items {
		requests[i].NamespacedName = client.ObjectKeyFromObject(&products.Items[i])
	}
	return requests
}

// countLater wakes a product a moment after its devices have changed, once for
// any number of changes.
func (r *ProductReconciler) countLater() handler.EventHandler {
	later := func(ctx context.Context, obj client.Object, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		device, ok := obj.(*v1alpha1.Device)
		if !ok {
			return
		}
		for _, request := range r.productsWith(ctx, device.Spec.ProductID, client.ListOptions{Namespace: device.Namespace}) {
			queue.AddAfter(request, countDelay)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			later(ctx, e.Object, queue)
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			later(ctx, e.Object, queue)
		},
	}
}

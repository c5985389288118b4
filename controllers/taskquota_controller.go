package controllers

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/quota"
)

// +kubebuilder:rbac:groups=iot.batchtask.dev,resources=taskquotas,verbs=get;list;watch;create
// +kubebuilder:rbac:groups=iot.batchtask.dev,resources=taskquotas/status,verbs=update
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=get;list;watch

// TaskQuotaReconciler makes the TaskQuota of each namespace that has products or
// tasks, and frees the slots that nobody needs any more.
type TaskQuotaReconciler struct {
	Client   client.Client
	Live     client.Reader // reads past every cache
	Ledger   *quota.Ledger
	Executor Executor
	// Grace is how long a slot is kept whose task has not appeared.
	Grace time.Duration
}

// Reconcile brings the ledger of a namespace up to date.
func (r *TaskQuotaReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if leaving, err := r.namespaceLeaving(ctx, req.Namespace); leaving || err != nil {
		return reconcile.Result{}, err
	}
	ledger := &v1alpha1.TaskQuota{}
	err := r.Client.Get(ctx, req.NamespacedName, ledger)
	if apierrors.IsNotFound(err) || (err == nil && !ledger.Status.Opened) {
		some, listErr := r.anyTask(ctx, req.Namespace)
		switch {
		case listErr != nil:
			return reconcile.Result{}, listErr
		case !some && err == nil:
			return reconcile.Result{}, nil // the first task opens it
		case !some:
			return reconcile.Result{}, r.Ledger.Offer(ctx, req.Namespace)
		}
		if err := r.Ledger.Ensure(ctx, req.Namespace); err != nil {
			return reconcile.Result{}, fmt.Errorf("make TaskQuota: %w", err)
		}
		return reconcile.Result{}, nil // it comes back when the cache has it
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read TaskQuota: %w", err)
	}
	if err := r.keepActive(ctx, ledger); err != nil {
		return reconcile.Result{}, err
	}
	next, err := r.Ledger.Reap(ctx, ledger, r.Grace, r.Executor.Working)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("free slots: %w", err)
	}
	return reconcile.Result{RequeueAfter: next}, nil
}

// anyTask reports whether the cache has a task of the namespace.
func (r *TaskQuotaReconciler) anyTask(ctx context.Context, namespace string) (bool, error) {
	var tasks v1alpha1.BatchTaskList
	if err := r.Client.List(ctx, &tasks, client.InNamespace(namespace), client.Limit(1), client.UnsafeDisableDeepCopy); err != nil {
		return false, fmt.Errorf("list tasks: %w", err)
	}
	return len(tasks.Items) > 0, nil
}

// keepActive takes the slots out of ledger whose task the cache shows as active, so
// that not every change of the ledger costs a live read for each of its slots.
// When such a task finishes its own reconciler frees the slot, and when it is
// deleted this one is woken.
func (r *TaskQuotaReconciler) keepActive(ctx context.Context, ledger *v1alpha1.TaskQuota) error {
	var suspect []v1alpha1.TaskSlot
	for _, slot := range ledger.Status.Slots {
		var task v1alpha1.BatchTask
		err := r.Client.Get(ctx, types.NamespacedName{Namespace: ledger.Namespace, Name: slot.Name}, &task)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("read task %s/%s, which holds a slot: %w", ledger.Namespace, slot.Name, err)
		}
		if err != nil || task.UID != slot.UID || task.Status.Phase.Finished() {
			suspect = append(suspect, slot)
		}
	}
	ledger.Status.Slots = suspect
	return nil
}

// namespaceLeaving reports whether the namespace is gone or on its way: nothing
// can be created in it. The cache may show what is in a new namespace before the
// namespace itself, so that it is gone must not rest on the cache.
func (r *TaskQuotaReconciler) namespaceLeaving(ctx context.Context, name string) (bool, error) {
	var ns corev1.Namespace
	err := r.Client.Get(ctx, types.NamespacedName{Name: name}, &ns)
	if apierrors.IsNotFound(err) {
		err = r.Live.Get(ctx, types.NamespacedName{Name: name}, &ns)
	}
	if err != nil {
		return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	}
	return ns.Status.Phase == corev1.NamespaceTerminating, nil
}

// SetupWithManager registers the reconciler.
func (r *TaskQuotaReconciler) SetupWithManager(mgr ctrl.Manager) error {
	ofNamespace := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, obj client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: obj.GetNamespace(), Name: v1alpha1.TaskQuotaName}}}
	})
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.TaskQuota{}).
		Watches(&v1alpha1.Product{}, ofNamespace).
		Watches(&v1alpha1.BatchTask{}, ofNamespace, builder.WithPredicates(createdOrDeleted)).
		WithOptions(controller.Options{MaxConcurrentReconciles: quotaWorkers}).
		Complete(r)
}

// quotaWorkers is how many namespaces are looked at at once.
const quotaWorkers = 4

// createdOrDeleted leaves out the many status changes of a running task.
var createdOrDeleted = predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }}

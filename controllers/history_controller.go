package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/history"
)

const (
	// historyDelay is how long the ends of tasks of a namespace are gathered before its
	// finished tasks are counted: that looks at each of them.
	historyDelay = 3 * time.Second
	// historyBatch is how many tasks of a namespace are deleted before others have their turn.
	historyBatch = 200
)

// HistoryReconciler deletes the oldest finished tasks of a namespace that are more than
// its TaskQuota says. It never touches one that has no TTL.
type HistoryReconciler struct {
	Client client.Client
}

// Reconcile keeps the limits of a namespace.
func (r *HistoryReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	quota := &v1alpha1.TaskQuota{}
	if err := r.Client.Get(ctx, req.NamespacedName, quota); client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("read TaskQuota: %w", err)
	}
	var tasks v1alpha1.BatchTaskList
	if err := r.Client.List(ctx, &tasks, client.InNamespace(req.Namespace), client.UnsafeDisableDeepCopy); err != nil { // they are only read
		return reconcile.Result{}, fmt.Errorf("list tasks: %w", err)
	}
	limits := history.LimitsOf(quota)
	excess := history.Excess(tasks.Items, limits)
	if len(excess) == 0 {
		return reconcile.Result{}, nil
	}
	logf.FromContext(ctx).Info("Deleting the oldest finished tasks: there are more than the TaskQuota keeps",
		"tasks", len(excess), "maxFinishedTasks", limits.Tasks, "maxFinishedLegacyTasks", limits.FromFront)
	for _, task := range excess[:min(len(excess), historyBatch)] {
		// Only as it was seen: its TTL may have been taken away meanwhile.
		target := &v1alpha1.BatchTask{}
		target.Namespace, target.Name = task.Namespace, task.Name
		err := r.Client.Delete(ctx, target, client.Preconditions{UID: &task.UID, ResourceVersion: &task.ResourceVersion})
		if result, err := retryConflict(err); err != nil || result.RequeueAfter > 0 {
			return result, err
		}
	}
	return reconcile.Result{RequeueAfter: historyDelay}, nil // the cache shows those that are gone by then
}

// SetupWithManager registers the reconciler.
func (r *HistoryReconciler) SetupWithManager(mgr ctrl.Manager) error {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	later := func(obj client.Object, queue queue) {
		queue.AddAfter(reconcile.Request{NamespacedName: client.ObjectKey{Namespace: obj.GetNamespace(), Name: v1alpha1.TaskQuotaName}}, historyDelay)
	}
	finished := func(obj client.Object) bool {
		task, ok := obj.(*v1alpha1.BatchTask)
		return ok && task.Status.Phase.Finished()
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("history").
		For(&v1alpha1.TaskQuota{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.BatchTask{}, handler.Funcs{
			CreateFunc: func(_ context.Context, e event.CreateEvent, queue queue) {
				if finished(e.Object) {
					later(e.Object, queue)
				}
			},
			UpdateFunc: func(_ context.Context, e event.UpdateEvent, queue queue) {
				if finished(e.ObjectNew) && (!finished(e.ObjectOld) || e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration()) {
					later(e.ObjectNew, queue)
				}
			},
		}).
		Complete(r)
}

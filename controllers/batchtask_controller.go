package controllers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
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
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/history"
	"batchtask.dev/operator/internal/lease"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/quota"
	"batchtask.dev/operator/internal/taskid"
	"batchtask.dev/operator/internal/validation"
)

// +kubebuilder:rbac:groups=iot.batchtask.dev,resources=batchtasks,verbs=get;list;watch;patch;delete
// +kubebuilder:rbac:groups=iot.batchtask.dev,resources=batchtasks/status,verbs=patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// errStale says that the task in the cache does not exist any more.
var errStale = errors.New("the cached task is gone")

// Executor carries tasks out.
type Executor interface {
	Ensure(task executor.Task)
	Progress(name types.NamespacedName, uid types.UID) (executor.Progress, bool)
	Cancel(name types.NamespacedName, uid types.UID)
	Suspend(name types.NamespacedName, uid types.UID)
	Forget(name types.NamespacedName)
	Saved(name types.NamespacedName, uid types.UID, mark uint64)
	Working(uid types.UID) bool
}

// Gate gives slots to tasks that have none, and takes them back.
type Gate interface {
	Confirm(ctx context.Context, task quota.Holder) (held bool, err error)
	Bind(ctx context.Context, task quota.Holder) error
	Release(ctx context.Context, namespace string, uids ...types.UID) error
}

// BatchTaskReconciler drives each BatchTask from Waiting to a finished phase, and
// deletes it when its time is over. It is the only writer of their status.
type BatchTaskReconciler struct {
	Client   client.Client
	Live     client.Reader // reads past every cache
	Gate     Gate
	Executor Executor
	Clock    clock.PassiveClock
	Recorder events.EventRecorder
	Metrics  *Metrics
	// Wake is where the executor tells of progress.
	Wake *Wakeups
	// Lease is what the process is elected by, and where its epoch comes from.
	Lease *lease.Lease
	// Stop ends the process with an error that nobody but a person can mend.
	Stop func(error)

	// StatusWrites is how many writes of progress a second all running tasks share; 0 for
	// any number.
	StatusWrites float64

	admitted  admitted
	written   written
	abandoned abandoned
	pace      pace
}

// Reconcile takes a task one step further.
func (r *BatchTaskReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	task := &v1alpha1.BatchTask{}
	if err := r.Client.Get(ctx, req.NamespacedName, task); err != nil {
		if apierrors.IsNotFound(err) {
			r.forget(req.NamespacedName)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	r.written.refresh(task)
	if task.Status.Phase.Finished() {
		return r.reconcileFinished(ctx, task)
	}

	seen, err := r.observe(ctx, task)
	if errors.Is(err, errStale) {
		return reconcile.Result{RequeueAfter: staleRetry}, nil
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if task.Status.Phase.Finished() { // the live read showed it; the cache will follow
		r.Executor.Forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	switch {
	case seen.progress == nil && !seen.sure:
		return reconcile.Result{RequeueAfter: doubtRetry}, nil // nothing may begin, nor end
	case seen.progress == nil:
		if left := r.abandoned.left(req.NamespacedName, seen.now); left > 0 {
			return reconcile.Result{RequeueAfter: left}, nil
		}
	case epochOf(task) != seen.hold.Epoch():
		return r.judge(ctx, task, seen)
	}
	next := decide(task, seen)
	if later := r.deferWrite(task, next, seen.now); later > 0 {
		return reconcile.Result{RequeueAfter: later}, nil
	}
	if err := r.write(ctx, task, next); err != nil {
		if seen.progress != nil && apierrors.IsConflict(err) {
			return r.judge(ctx, task, seen)
		}
		return retryConflict(err)
	}
	if seen.progress != nil {
		r.Executor.Saved(req.NamespacedName, task.UID, seen.progress.Mark)
	}
	if err := r.act(task, next.action, seen.progress != nil, seen.hold); err != nil {
		return reconcile.Result{}, err
	}
	if err := r.label(ctx, task); err != nil {
		return retryConflict(err)
	}
	return reconcile.Result{RequeueAfter: next.wakeAfter}, nil
}

// observe gathers what the next step depends on. A task passes the gate the first
// time this process sees it, and again whenever a run is about to begin that does
// not begin with a write: a cache that lags behind may show a task that has finished
// as Processing, or an older checkpoint, and a run begun on that would serve devices
// twice.
func (r *BatchTaskReconciler) observe(ctx context.Context, task *v1alpha1.BatchTask) (observation, error) {
	seen := observation{now: r.Clock.Now()}
	if !r.admitted.has(task.UID) { // what was right stays so: what may change is for the schema to judge
		seen.invalid = validation.Spec(&task.Spec)
	}
	progress, running := r.Executor.Progress(client.ObjectKeyFromObject(task), task.UID)
	if running {
		seen.progress = &progress
	}
	// The right to begin is asked for again below, after the live read: what was read while
	// the Lease was surely held is not older than what its last holder wrote. Asked for
	// before, it only spares the reads of a process that may not begin anything.
	if seen.hold, seen.sure = r.hold(); !running && !seen.sure {
		return seen, nil
	}
	toRun := task.Status.Phase == v1alpha1.TaskPhaseProcessing && !running
	if len(seen.invalid) == 0 && (toRun || !r.admitted.has(task.UID)) {
		noSlot, err := r.pass(ctx, task)
		if err != nil {
			return seen, err
		}
		seen.noSlot = noSlot
		seen.hold, seen.sure = r.hold()
	}
	if seen.taskID = task.Labels[v1alpha1.LabelTaskID]; !taskid.Valid(seen.taskID) {
		seen.taskID = taskid.New(seen.now)
	}
	var err error
	seen.product, err = r.observeProduct(ctx, task)
	return seen, err
}

// pass brings the task up to date by a live read and binds its slot.
// It returns a *quota.LimitError as noSlot when the task has none and can get none,
// and errStale when the cache shows another object of this name.
//
// A new task that holds a slot needs no live read: nothing is done for it before
// its first status is written, with the version that was seen here. If that is not
// the newest the write is refused.
func (r *BatchTaskReconciler) pass(ctx context.Context, task *v1alpha1.BatchTask) (noSlot, err error) {
	holder := quota.Holder{UID: task.UID, Namespace: task.Namespace, Name: task.Name}
	if task.Status.Phase == "" {
		held, err := r.Gate.Confirm(ctx, holder)
		if err != nil {
			return nil, fmt.Errorf("bind slot: %w", err)
		}
		if held {
			r.admitted.add(client.ObjectKeyFromObject(task), task.UID)
			return nil, nil
		}
	}
	live := &v1alpha1.BatchTask{}
	switch err := r.Live.Get(ctx, client.ObjectKeyFromObject(task), live); {
	case apierrors.IsNotFound(err) || (err == nil && live.UID != task.UID):
		return nil, errStale
	case err != nil:
		return nil, fmt.Errorf("read task live: %w", err)
	}
	*task = *live
	if task.Status.Phase.Finished() {
		return nil, nil
	}
	err = r.Gate.Bind(ctx, holder)
	var limit *quota.LimitError
	switch {
	case errors.As(err, &limit):
		return limit, nil
	case err != nil:
		return nil, fmt.Errorf("bind slot: %w", err)
	}
	r.admitted.add(client.ObjectKeyFromObject(task), task.UID)
	return nil, nil
}

func (r *BatchTaskReconciler) observeProduct(ctx context.Context, task *v1alpha1.BatchTask) (productCondition, error) {
	found, err := product.Finder{Reader: r.Client}.Lookup(ctx, task.Namespace, task.Spec.ProductID)
	if err == nil && found == nil { // that it is gone must not rest on a stale cache
		found, err = product.Finder{Reader: r.Live}.Lookup(ctx, task.Namespace, task.Spec.ProductID)
	}
	switch {
	case err != nil:
		return productCondition{}, err
	case found == nil:
		return productCondition{message: fmt.Sprintf("the namespace has no Product with ID %q", task.Spec.ProductID)}, nil
	case !product.Ready(found):
		return productCondition{exists: true, message: fmt.Sprintf("Product %q is not Ready", found.Name)}, nil
	}
	return productCondition{exists: true, ready: true}, nil
}

// write patches the status if it has changed, and records the event and counts
// devices once that has succeeded. The patch carries the resourceVersion, so a
// step that was decided on an old state is refused and decided again.
func (r *BatchTaskReconciler) write(ctx context.Context, task *v1alpha1.BatchTask, next decision) error {
	if equality.Semantic.DeepEqual(task.Status, next.status) {
		return nil
	}
	before := task.DeepCopy()
	task.Status = next.status
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := r.Client.Status().Patch(ctx, task, patch); err != nil {
		task.Status = before.Status
		return fmt.Errorf("write status: %w", err)
	}
	r.written.keep(task)
	if want := next.status.Checkpoint; want != nil && want.Epoch != epochOf(task) {
		r.Stop(errOldResources)
		return errOldResources
	}
	r.keepPace(task)
	r.Metrics.observeStatus(before, task, r.Clock.Now())
	if next.scheduled != "" {
		r.Recorder.Eventf(task, nil, corev1.EventTypeNormal, v1alpha1.ReasonScheduled, string(v1alpha1.TaskPhaseWaiting), "%s", next.scheduled)
	}
	if next.event == "" {
		return nil
	}
	eventType, note := corev1.EventTypeNormal, readyMessage(task)
	if next.warning {
		eventType = corev1.EventTypeWarning
	}
	if next.event == v1alpha1.EventFailed {
		note = readyReason(task) + ": " + note
	}
	r.Recorder.Eventf(task, nil, eventType, next.event, string(task.Status.Phase), "%s", eventNote(note))
	counts := task.Status.Counts()
	logf.FromContext(ctx).Info("Task is "+string(task.Status.Phase), "reason", readyReason(task),
		"matched", counts.Matched, "succeeded", counts.Succeeded, "failed", counts.Failed)
	return nil
}

// deferWrite returns how long a write that only shows progress has to wait; 0 if it is to be
// made now, or it is no such write. What is not written yet is shown by a later one.
func (r *BatchTaskReconciler) deferWrite(task *v1alpha1.BatchTask, next decision, now time.Time) time.Duration {
	if !next.deferrable || task.Status.ObservedGeneration != next.status.ObservedGeneration ||
		readyReason(task) != conditionReason(next.status.Conditions, v1alpha1.ConditionReady) ||
		isHeldUp(task.Status.Conditions) != isHeldUp(next.status.Conditions) {
		return 0
	}
	return r.pace.due(client.ObjectKeyFromObject(task), now)
}

// keepPace notes a write of a running task. The one that starts it has nothing to show yet.
func (r *BatchTaskReconciler) keepPace(task *v1alpha1.BatchTask) {
	name := client.ObjectKeyFromObject(task)
	switch {
	case task.Status.Phase.Finished():
		r.pace.drop(name)
	case task.Status.Checkpoint != nil && task.Status.Checkpoint.Cursor != "" || task.Status.Counts().Matched > 0:
		r.pace.wrote(name, r.Clock.Now())
	}
}

// act carries out what was decided, once it has been written. A task that is running is
// not read again to be started.
func (r *BatchTaskReconciler) act(task *v1alpha1.BatchTask, what action, running bool, hold lease.Hold) error {
	name := client.ObjectKeyFromObject(task)
	switch what {
	case actStart:
		if running {
			return nil
		}
		run, err := executor.FromObject(task)
		if err != nil {
			return fmt.Errorf("start task: %w", err)
		}
		run.Hold = hold // as it was before the epoch was written
		r.Executor.Ensure(run)
	case actCancel:
		r.Executor.Cancel(name, task.UID)
	case actSuspend:
		r.Executor.Suspend(name, task.UID)
	case actForget:
		r.Executor.Forget(name)
	case actNothing:
	}
	return nil
}

// label puts the task's ID on its label. The webhook has done so for every task
// that it admitted.
func (r *BatchTaskReconciler) label(ctx context.Context, task *v1alpha1.BatchTask) error {
	if task.Labels[v1alpha1.LabelTaskID] == task.Status.TaskID {
		return nil
	}
	before := task.DeepCopy()
	metav1.SetMetaDataLabel(&task.ObjectMeta, v1alpha1.LabelTaskID, task.Status.TaskID)
	if err := r.Client.Patch(ctx, task, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("label task: %w", err)
	}
	return nil
}

// reconcileFinished frees the slot of a finished task and deletes the task when
// its time is over. The terminal status was written before: a slot is never free
// while its task is active.
func (r *BatchTaskReconciler) reconcileFinished(ctx context.Context, task *v1alpha1.BatchTask) (reconcile.Result, error) {
	r.Executor.Forget(client.ObjectKeyFromObject(task))
	r.pace.drop(client.ObjectKeyFromObject(task)) // the answer to its last write may have been lost
	if err := r.release(ctx, task); err != nil {
		return reconcile.Result{}, err
	}
	if err := r.observeGeneration(ctx, task); err != nil {
		return retryConflict(err)
	}
	ttl, ends := history.TTL(task)
	if !ends {
		return reconcile.Result{}, nil
	}
	if left := history.Completed(task).Add(ttl).Sub(r.Clock.Now()); left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	logf.FromContext(ctx).Info("Deleting task, its ttlSecondsAfterFinished has passed")
	return retryConflict(r.Client.Delete(ctx, task, client.Preconditions{UID: &task.UID, ResourceVersion: &task.ResourceVersion}))
}

// release frees the task's slot. A task that this process has admitted surely had
// one; of others the cached ledger tells, and what it misses the reaper finds.
func (r *BatchTaskReconciler) release(ctx context.Context, task *v1alpha1.BatchTask) error {
	if !r.admitted.has(task.UID) {
		var ledger v1alpha1.TaskQuota
		err := r.Client.Get(ctx, types.NamespacedName{Namespace: task.Namespace, Name: v1alpha1.TaskQuotaName}, &ledger)
		if err != nil || !quota.Holds(&ledger, task.UID) {
			return client.IgnoreNotFound(err)
		}
	}
	if err := r.Gate.Release(ctx, task.Namespace, task.UID); err != nil {
		return fmt.Errorf("release slot: %w", err)
	}
	r.admitted.remove(client.ObjectKeyFromObject(task))
	return nil
}

// observeGeneration keeps observedGeneration up with a finished task whose cancel
// or ttlSecondsAfterFinished was changed: else kstatus would wait for ever. The cache
// keeps only a part of a finished task, so what is written is made from the whole.
func (r *BatchTaskReconciler) observeGeneration(ctx context.Context, stripped *v1alpha1.BatchTask) error {
	if stripped.Status.ObservedGeneration == stripped.Generation {
		return nil
	}
	task := &v1alpha1.BatchTask{}
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(stripped), task); err != nil {
		return err
	}
	if task.UID != stripped.UID || task.Status.ObservedGeneration == task.Generation {
		return nil
	}
	next := decision{status: *task.Status.DeepCopy()}
	next.status.ObservedGeneration = task.Generation
	for i := range next.status.Conditions {
		next.status.Conditions[i].ObservedGeneration = task.Generation
	}
	return r.write(ctx, task, next)
}

func (r *BatchTaskReconciler) forget(name types.NamespacedName) {
	r.Executor.Forget(name)
	r.admitted.remove(name)
	r.written.drop(name)
	r.abandoned.drop(name)
	r.pace.drop(name)
}

// SetupWithManager registers the reconciler. The cache must have the index of
// FieldProductID on BatchTasks and Products.
func (r *BatchTaskReconciler) SetupWithManager(mgr ctrl.Manager) error {
	r.pace.rate = r.StatusWrites
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.BatchTask{}, builder.WithPredicates(worthALook)).
		Watches(&v1alpha1.Product{}, handler.EnqueueRequestsFromMapFunc(r.tasksOfProduct), builder.WithPredicates(readyChanged)).
		WatchesRawSource(source.Func(r.Wake.start)).
		WithOptions(controller.Options{MaxConcurrentReconciles: 16}).
		Complete(r)
}

// tasksOfProduct wakes the tasks that are held up, or are to be, when a product
// changes.
func (r *BatchTaskReconciler) tasksOfProduct(ctx context.Context, obj client.Object) []reconcile.Request {
	changed, ok := obj.(*v1alpha1.Product)
	if !ok {
		return nil
	}
	var tasks v1alpha1.BatchTaskList
	if err := r.Client.List(ctx, &tasks, client.InNamespace(changed.Namespace),
		client.MatchingFields{product.FieldProductID: changed.Spec.ProductID}); err != nil {
		logf.FromContext(ctx).Error(err, "Cannot list the tasks of a product that has changed")
		return nil
	}
	var requests []reconcile.Request
	for i := range tasks.Items {
		if !tasks.Items[i].Status.Phase.Finished() {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&tasks.Items[i])})
		}
	}
	return requests
}

// worthALook leaves out the checkpoints of running tasks, this reconciler's own
// writes: each would lead to a look that finds progress, writes it, and so on.
var worthALook = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld.(*v1alpha1.BatchTask), e.ObjectNew.(*v1alpha1.BatchTask) //nolint:forcetypeassert // watched as such
		return before.UID != after.UID || before.Generation != after.Generation ||
			before.Status.Phase != after.Status.Phase || !maps.Equal(before.Labels, after.Labels)
	},
}

var readyChanged = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld.(*v1alpha1.Product), e.ObjectNew.(*v1alpha1.Product) //nolint:forcetypeassert // watched as such
		return product.Ready(before) != product.Ready(after)
	},
}

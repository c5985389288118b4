package controllers

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
)

// admitted remembers which tasks have passed the gate in this process.
type admitted struct {
	mu    sync.Mutex
	byKey map[types.NamespacedName]types.UID
	uids  map[types.UID]struct{}
}

func (a *admitted) has(uid types.UID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.uids[uid]
	return ok
}

func (a *admitted) add(name types.NamespacedName, uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.uids == nil {
		a.byKey, a.uids = map[types.NamespacedName]types.UID{}, map[types.UID]struct{}{}
	}
	delete(a.uids, a.byKey[name])
	a.byKey[name], a.uids[uid] = uid, struct{}{}
}

func (a *admitted) remove(name types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.uids, a.byKey[name])
	delete(a.byKey, name)
}

// written keeps each task as this process has last written it. A running task is
// written many times a second, and the cache is always a little behind: without
// this every other step would be decided on an old state and refused.
type written struct {
	mu    sync.Mutex
	tasks map[types.NamespacedName]*v1alpha1.BatchTask
}

func (w *written) keep(task *v1alpha1.BatchTask) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tasks == nil {
		w.tasks = map[types.NamespacedName]*v1alpha1.BatchTask{}
	}
	w.tasks[client.ObjectKeyFromObject(task)] = task.DeepCopy()
}

// refresh replaces a task from the cache by what was written after it, if it was.
func (w *written) refresh(task *v1alpha1.BatchTask) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := client.ObjectKeyFromObject(task)
	last, ok := w.tasks[name]
	if !ok {
		return
	}
	order, err := resourceversion.CompareResourceVersion(task.ResourceVersion, last.ResourceVersion)
	if last.UID != task.UID || err != nil || order >= 0 {
		delete(w.tasks, name) // the cache has caught up
		return
	}
	last.DeepCopyInto(task)
}

func (w *written) drop(name types.NamespacedName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.tasks, name)
}

// abandoned remembers until when a task is left to the other manager that was found to
// run it.
type abandoned struct {
	mu    sync.Mutex
	until map[types.NamespacedName]time.Time
}

func (a *abandoned) add(name types.NamespacedName, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil {
		a.until = map[types.NamespacedName]time.Time{}
	}
	a.until[name] = until
}

func (a *abandoned) left(name types.NamespacedName, now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.until[name].Sub(now)
}

func (a *abandoned) drop(name types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.until, name)
}

// Wakeups carries the executor's news to the reconciler's queue.
type Wakeups struct {
	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
}

// Wake puts a task into the queue. Before the controller has started there is
// none, and no run either.
func (w *Wakeups) Wake(name types.NamespacedName) {
	w.mu.Lock()
	queue := w.queue
	w.mu.Unlock()
	if queue != nil {
		queue.Add(reconcile.Request{NamespacedName: name})
	}
}

func (w *Wakeups) start(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = queue
	return nil
}

package quota

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"batchtask.dev/operator/api/v1alpha1"
)

// A reservation is made before its task exists, on the word of who calls the webhook.
// Whoever else can reach its port can make some as well, for tasks that never come. Two
// rules see to it that this refuses the owner of a namespace nothing:
//
//   - A reservation holds a slot against others for as long as a create takes. After
//     that, whoever finds no slot free takes that of a task that is not there.
//   - A namespace in which too many reservations come to nothing gets none: a new task is
//     admitted if the tasks that exist leave room, and takes its slot when it exists. So
//     a forged review has no effect at all, and of several creates at once the ones too
//     many fail with QuotaExceeded instead of being refused.
const (
	// settle is how long a reservation is respected while its namespace is full. The
	// API server stores a task milliseconds after it was admitted; a task whose create
	// takes longer may find its slot gone, as after the grace time.
	settle = 3 * time.Second
	// looksAtOnce is how many reservations are looked into to find one to take.
	looksAtOnce = 8
	// unmet is how many reservations may come to nothing within unmetPeriod, in each
	// process; at least twice as many as the namespace may have active tasks.
	unmet       = 20
	unmetPeriod = time.Minute
)

// reservations remembers which reservations of this process no task has been seen for.
type reservations struct {
	mu         sync.Mutex
	namespaces map[string]map[types.UID]time.Time // when they were made
}

// trusted reports whether another reservation may be made.
func (r *reservations) trusted(namespace string, limit int, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	open := r.namespaces[namespace]
	for uid, made := range open {
		if now.Sub(made) >= unmetPeriod {
			delete(open, uid)
		}
	}
	if len(open) == 0 {
		delete(r.namespaces, namespace)
	}
	return len(open) < max(unmet, 2*limit)
}

func (r *reservations) made(task Holder, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.namespaces == nil {
		r.namespaces = map[string]map[types.UID]time.Time{}
	}
	if r.namespaces[task.Namespace] == nil {
		r.namespaces[task.Namespace] = map[types.UID]time.Time{}
	}
	r.namespaces[task.Namespace][task.UID] = now
}

// met takes note of the tasks that a state of a ledger shows to exist.
func (r *reservations) met(quota *v1alpha1.TaskQuota) {
	r.mu.Lock()
	defer r.mu.Unlock()
	open := r.namespaces[quota.Namespace]
	if len(open) == 0 {
		return
	}
	for i := range quota.Status.Slots {
		if slot := &quota.Status.Slots[i]; slot.Bound {
			delete(open, slot.UID)
		}
	}
	if len(open) == 0 {
		delete(r.namespaces, quota.Namespace)
	}
}

// limitOf returns the limit of a namespace as far as this process knows it.
func (l *Ledger) limitOf(namespace string) int {
	if known := l.memory.recall(namespace); known != nil {
		return int(known.Spec.MaxActiveTasks)
	}
	return v1alpha1.DefaultMaxActiveTasks
}

// admitUnreserved returns a *LimitError when tasks that exist hold all slots.
func (l *Ledger) admitUnreserved(ctx context.Context, namespace string) error {
	quota, err := l.read(ctx, namespace)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read TaskQuota of namespace %q: %w", namespace, err)
	}
	kept := quota.Status.Slots[:0]
	for _, slot := range quota.Status.Slots {
		if slot.Bound {
			kept = append(kept, slot)
		}
	}
	quota.Status.Slots = kept
	return checkFree(quota)
}

// abandoned returns some of the slots that a namespace was full with, whose tasks are not
// there though they have had the time to come.
func (l *Ledger) abandoned(ctx context.Context, full *LimitError) ([]types.UID, error) {
	var gone []types.UID
	looks := 0
	for _, slot := range full.reserved {
		if l.clock.Now().Sub(slot.ReservedAt.Time) < settle || looks == looksAtOnce {
			continue
		}
		looks++
		task := &metav1.PartialObjectMetadata{}
		task.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("BatchTask"))
		err := l.live.Get(ctx, types.NamespacedName{Namespace: full.Namespace, Name: slot.Name}, task)
		switch {
		case apierrors.IsNotFound(err) || err == nil && task.UID != slot.UID:
			gone = append(gone, slot.UID)
		case err != nil:
			return nil, fmt.Errorf("read task %s/%s, for which a slot is reserved: %w", full.Namespace, slot.Name, err)
		}
	}
	return gone, nil
}

// takeOver gives a task a slot that is free or, if the namespace is full, that is
// reserved for one that has not come. A slot that has been bound meanwhile stays.
func (l *Ledger) takeOver(ctx context.Context, task Holder, bound bool) error {
	taking := func(q *v1alpha1.TaskQuota) (bool, error) { return take(q, task, bound, l.now()) }
	err := l.change(ctx, task.Namespace, taking)
	var full *LimitError
	if !errors.As(err, &full) {
		return err
	}
	gone, failed := l.abandoned(ctx, full)
	switch {
	case failed != nil:
		return failed
	case len(gone) == 0:
		return err
	}
	return l.change(ctx, task.Namespace, func(q *v1alpha1.TaskQuota) (bool, error) {
		var still []types.UID
		for _, uid := range gone {
			if slot := find(q, uid); slot != nil && !slot.Bound {
				still = append(still, uid)
			}
		}
		freed := drop(q, still...)
		taken, err := taking(q)
		return freed || taken, err
	})
}

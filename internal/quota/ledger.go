// Package quota keeps the ledger of slots: which tasks of a namespace are active,
// and that they are never more than its TaskQuota allows.
//
// Counting objects would race: caches are stale and webhooks have replicas. So a
// task is active exactly as long as its UID holds a slot in the one TaskQuota
// object of its namespace, and every change of the ledger is an update that
// carries the resourceVersion of the state it rests on. Two writers that start
// from the same state cannot both succeed, and the API server refuses a slot too
// many by a rule of the schema. A change may start from a state that this process
// remembers: if there is a newer one, the write is refused and the ledger is read
// live. What leads to no write, such as a refusal, always rests on a live read.
//
//	Reserve  the webhook, before the object exists; the slot is not bound, and in a full
//	         namespace only respected for as long as a create takes
//	Confirm  the reconciler, before any phase or work: binds the slot
//	Bind     the same, and takes a free one for a task that was created past the
//	         webhook
//	Release  the reconciler, after the terminal status is written
//	Reap     the TaskQuota reconciler: slots of tasks that never came, are gone
//	         or have finished
//
// A reservation whose create is lost (refused by a later webhook, the caller gone)
// is not bound and is reaped after a grace time. If its object does arrive after
// that, Bind finds no slot: it takes a free one or the task fails. Reap and Bind
// cannot both win, because they update the same object.
package quota

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
)

// errDeleted says that the TaskQuota was deleted after it had been read.
var errDeleted = errors.New("the TaskQuota was deleted meanwhile")

// errRemembered says that what was decided may not rest on a remembered state.
var errRemembered = errors.New("the TaskQuota must be read live")

// DefaultGrace is how long a slot is kept whose task has not appeared.
const DefaultGrace = 15 * time.Second

// Ledger changes the ledgers of all namespaces.
type Ledger struct {
	live   client.Reader // reads past every cache
	writer client.Client
	clock  clock.PassiveClock
	memory memory

	reservations reservations

	mu     sync.Mutex
	queues map[string]chan struct{} // one place for each namespace: its holder may write
}

// NewLedger returns a ledger. live must not read from a cache.
func NewLedger(live client.Reader, writer client.Client, clk clock.PassiveClock) *Ledger {
	return &Ledger{live: live, writer: writer, clock: clk, queues: map[string]chan struct{}{}}
}

// Reserve takes a slot for a task that is being created. It returns a
// *LimitError when none is free. Where too many reservations have come to nothing it
// takes none; see reservations.
func (l *Ledger) Reserve(ctx context.Context, task Holder) error {
	if !l.reservations.trusted(task.Namespace, l.limitOf(task.Namespace), l.clock.Now()) {
		return l.admitUnreserved(ctx, task.Namespace)
	}
	err := l.takeOver(ctx, task, false)
	if err == nil {
		l.reservations.made(task, l.clock.Now())
	}
	return err
}

// Bind makes sure that an existing task holds a slot: the one that was reserved,
// or else a free one. It returns a *LimitError when there is neither.
func (l *Ledger) Bind(ctx context.Context, task Holder) error {
	return l.takeOver(ctx, task, true)
}

// Confirm binds the slot that was reserved for a task and reports whether there is
// one, bound now or before. Other than Bind it never takes a free one.
func (l *Ledger) Confirm(ctx context.Context, task Holder) (held bool, err error) {
	err = l.change(ctx, task.Namespace, func(q *v1alpha1.TaskQuota) (bool, error) {
		if held = Holds(q, task.UID); !held {
			return false, nil
		}
		return take(q, task, true, l.now())
	})
	return held && err == nil, err
}

// Check returns a *LimitError when no slot is free, and takes none: for dry runs.
func (l *Ledger) Check(ctx context.Context, namespace string) error {
	quota, err := l.read(ctx, namespace)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read TaskQuota of namespace %q: %w", namespace, err)
	}
	err = checkFree(quota)
	var full *LimitError
	if errors.As(err, &full) {
		if gone, failed := l.abandoned(ctx, full); failed != nil || len(gone) > 0 {
			return failed // a create would get the slot of a task that has not come
		}
	}
	return err
}

// Release frees the slots of these tasks, if they hold any. In a namespace that is
// being deleted the ledger may be gone already, and cannot be made again.
func (l *Ledger) Release(ctx context.Context, namespace string, uids ...types.UID) error {
	err := l.change(ctx, namespace, func(q *v1alpha1.TaskQuota) (bool, error) {
		return drop(q, uids...), nil
	})
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}

// Ensure makes the namespace's TaskQuota where it is missing, with every task in
// it that is active already.
func (l *Ledger) Ensure(ctx context.Context, namespace string) error {
	return l.change(ctx, namespace, func(*v1alpha1.TaskQuota) (bool, error) { return false, nil })
}

// Reap frees the slots that nobody needs any more: of tasks that are gone or have
// finished, and unbound ones whose task has not appeared within the grace time.
// working reports whether a deleted task is still being worked on; its slot stays
// until it is not. Reap returns when the next unbound slot runs out of grace; 0
// if there is none.
func (l *Ledger) Reap(ctx context.Context, quota *v1alpha1.TaskQuota, grace time.Duration, working func(types.UID) bool) (next time.Duration, err error) {
	var stale []types.UID
	for _, slot := range quota.Status.Slots {
		idle, retry, err := l.idle(ctx, quota.Namespace, slot, grace, working)
		if err != nil {
			return 0, err
		}
		if idle {
			stale = append(stale, slot.UID)
		}
		if retry > 0 && (next == 0 || retry < next) {
			next = retry
		}
	}
	if len(stale) == 0 {
		return next, nil
	}
	return next, l.change(ctx, quota.Namespace, func(q *v1alpha1.TaskQuota) (bool, error) {
		// A slot that has been bound since was found idle before: it is not. Its
		// task is looked at again when the change is seen.
		for _, slot := range quota.Status.Slots {
			if now := find(q, slot.UID); now != nil && now.Bound != slot.Bound {
				return false, nil
			}
		}
		return drop(q, stale...), nil
	})
}

// idle reports whether a slot can be freed, by a live read of its task, and else
// after what time to look again (0: when something changes). An unbound slot has
// its grace time whatever there is to read.
func (l *Ledger) idle(ctx context.Context, namespace string, slot v1alpha1.TaskSlot, grace time.Duration, working func(types.UID) bool) (bool, time.Duration, error) {
	if left := slot.ReservedAt.Add(grace).Sub(l.clock.Now()); !slot.Bound && left > 0 {
		return false, left, nil
	}
	var task v1alpha1.BatchTask
	err := l.live.Get(ctx, types.NamespacedName{Namespace: namespace, Name: slot.Name}, &task)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return false, 0, fmt.Errorf("read task %s/%s, which holds a slot: %w", namespace, slot.Name, err)
	case err == nil && task.UID == slot.UID:
		return task.Status.Phase.Finished(), 0, nil
	case slot.Bound && working(slot.UID):
		return false, time.Second, nil
	default:
		return true, 0, nil
	}
}

// change applies mutate to the namespace's ledger, and writes it if mutate says
// that it changed anything. It starts from the state that is remembered; if none
// is, if mutate changes nothing in it or if the write meets another, it begins
// again with a live read. So mutate may be called several times. Changes of one
// namespace queue up within this process, so that a burst of creates does not spend
// its time on conflicts with itself.
func (l *Ledger) change(ctx context.Context, namespace string, mutate func(*v1alpha1.TaskQuota) (bool, error)) error {
	leave, err := l.enter(ctx, namespace)
	if err != nil {
		return err
	}
	defer leave()

	backoff := wait.Backoff{Duration: 2 * time.Millisecond, Factor: 1.5, Jitter: 1, Steps: 20, Cap: 200 * time.Millisecond}
	if quota := l.memory.recall(namespace); quota != nil && quota.Status.Opened {
		if err := l.apply(ctx, quota, true, mutate); !outdated(err) {
			return err
		}
	}
	for {
		err := l.attempt(ctx, namespace, mutate)
		if !outdated(err) {
			return err
		}
		select {
		case <-l.after(backoff.Step()):
		case <-ctx.Done():
			return fmt.Errorf("change TaskQuota of namespace %q: %w (last: %w)", namespace, ctx.Err(), err)
		}
	}
}

// outdated reports whether a change failed only because of what it started from.
func outdated(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || errors.Is(err, errDeleted) || errors.Is(err, errRemembered)
}

// attempt changes the ledger as a live read shows it, and makes it if there is none.
func (l *Ledger) attempt(ctx context.Context, namespace string, mutate func(*v1alpha1.TaskQuota) (bool, error)) error {
	quota, err := l.read(ctx, namespace)
	if apierrors.IsNotFound(err) {
		if quota, err = l.create(ctx, namespace); err != nil {
			return err
		}
	} else if err != nil {
		return fmt.Errorf("read TaskQuota of namespace %q: %w", namespace, err)
	}
	return l.apply(ctx, quota, false, mutate)
}

// Offer makes the TaskQuota of a namespace where it is missing, for people to see and to
// change. The ledger is not opened: the first change does that.
func (l *Ledger) Offer(ctx context.Context, namespace string) error {
	_, err := l.create(ctx, namespace)
	return client.IgnoreAlreadyExists(err)
}

func (l *Ledger) create(ctx context.Context, namespace string) (*v1alpha1.TaskQuota, error) {
	quota := &v1alpha1.TaskQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.TaskQuotaName},
		Spec:       v1alpha1.TaskQuotaSpec{MaxActiveTasks: v1alpha1.DefaultMaxActiveTasks},
	}
	if err := l.writer.Create(ctx, quota); err != nil {
		return nil, fmt.Errorf("create TaskQuota of namespace %q: %w", namespace, err)
	}
	return quota, nil
}

// apply changes a state of the ledger and writes it. If there is nothing to change
// it returns what mutate did, or errRemembered for a state that is only remembered.
func (l *Ledger) apply(ctx context.Context, quota *v1alpha1.TaskQuota, remembered bool, mutate func(*v1alpha1.TaskQuota) (bool, error)) error {
	opened, err := l.open(ctx, quota)
	if err != nil {
		return err
	}
	changed, refused := mutate(quota)
	if !changed && !opened {
		if remembered {
			return errRemembered
		}
		return refused
	}
	quota.Status.Active = int32(len(quota.Status.Slots)) //nolint:gosec // at most 1000
	err = l.writer.Status().Update(ctx, quota)
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("write TaskQuota of namespace %q: %w", quota.Namespace, errDeleted)
	}
	if err != nil {
		return fmt.Errorf("write TaskQuota of namespace %q: %w", quota.Namespace, err)
	}
	l.saw(quota)
	return refused
}

// open fills a new ledger with the tasks that are active already, and then those
// that are about to be because they exist and have no phase yet, oldest first,
// before its first slot is given away: the TaskQuota may have been deleted, or be
// applied by a user to a namespace that has tasks. It is part of the same update
// as the first change, so nobody ever sees a new ledger that is merely empty.
func (l *Ledger) open(ctx context.Context, quota *v1alpha1.TaskQuota) (opened bool, err error) {
	if quota.Status.Opened {
		return false, nil
	}
	active, err := l.active(ctx, quota.Namespace)
	if err != nil {
		return false, err
	}
	quota.Status.Opened = true
	// The limit may have been lowered meanwhile: the gate decides about the rest.
	for _, task := range active {
		if len(quota.Status.Slots) < int(quota.Spec.MaxActiveTasks) && find(quota, task.UID) == nil {
			quota.Status.Slots = append(quota.Status.Slots,
				v1alpha1.TaskSlot{UID: task.UID, Name: task.Name, ReservedAt: l.now(), Bound: true})
		}
	}
	return true, nil
}

// openPage is how many tasks are read at once: there may be thousands that have finished.
const openPage = 200

// active lists the tasks of a namespace that have not finished.
func (l *Ledger) active(ctx context.Context, namespace string) ([]v1alpha1.BatchTask, error) {
	var active []v1alpha1.BatchTask
	for next := ""; ; {
		var page v1alpha1.BatchTaskList
		if err := l.live.List(ctx, &page, client.InNamespace(namespace), client.Limit(openPage), client.Continue(next)); err != nil {
			return nil, fmt.Errorf("list tasks of namespace %q: %w", namespace, err)
		}
		active = append(active, unfinished(page.Items)...)
		if next = page.Continue; next == "" {
			return unfinished(active), nil // in the order of all
		}
	}
}

func (l *Ledger) read(ctx context.Context, namespace string) (*v1alpha1.TaskQuota, error) {
	var quota v1alpha1.TaskQuota
	err := l.live.Get(ctx, types.NamespacedName{Namespace: namespace, Name: v1alpha1.TaskQuotaName}, &quota)
	return &quota, err
}

// enter waits until no other change of this namespace is under way in this process.
func (l *Ledger) enter(ctx context.Context, namespace string) (leave func(), err error) {
	l.mu.Lock()
	queue, ok := l.queues[namespace]
	if !ok {
		queue = make(chan struct{}, 1)
		l.queues[namespace] = queue
	}
	l.mu.Unlock()
	select {
	case queue <- struct{}{}:
		return func() { <-queue }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for other changes to TaskQuota of namespace %q: %w", namespace, ctx.Err())
	}
}

func (l *Ledger) now() metav1.Time { return metav1.NewTime(l.clock.Now()) }

// after is real time whatever the clock: it spaces network calls.
func (l *Ledger) after(d time.Duration) <-chan time.Time { return time.After(d) }

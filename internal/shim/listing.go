package shim

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/internal/taskid"
)

const (
	// maxReads is how many accounts' lists are read at once.
	maxReads = 4
	// longestRest is the longest pause between two reads of one account's list.
	longestRest = time.Second
	// maxKnown is how many tasks are kept as they were told, some hundred bytes each;
	// an account has an eighth of that at most.
	maxKnown = 1 << 17
	// readsAtOnce is how many tasks of a page are read at once.
	readsAtOnce = 8
)

// listing answers which tasks an account has. What it asks the API server for is their
// metadata alone, which the API server has in memory, and never a payload; then it reads those
// tasks of the page that have changed since it read them last. So an answer is as true as if
// everything had been read: whoever has created or cancelled a task, through whichever replica,
// finds it so.
//
// An account's list is read by one at a time, with a pause as long as the read took; all
// calls that came before it began share it. So an account that asks without end costs the API
// server half of one of its cores, and delays nobody else.
type listing struct {
	client  client.Client
	clock   clock.PassiveClock
	timeout time.Duration
	reads   chan struct{}

	mu       sync.Mutex
	accounts map[string]*tasksOf
	known    int
}

// tasksOf are the tasks of one account.
type tasksOf struct {
	reading bool
	next    *read // of the calls that came after the read under way began
	rest    time.Time
	used    time.Time
	tasks   map[types.UID]known
}

// read is one read of a list.
type read struct {
	done    chan struct{}
	entries []entry
	err     error
}

// entry is what the metadata tell of a task.
type entry struct {
	name, version string
	uid           types.UID
	created       int64
	id            string
}

// known is a task as it was at a version.
type known struct {
	version string
	task    qcloud.Task
}

func newListing(client client.Client, clock clock.PassiveClock, timeout time.Duration) *listing {
	return &listing{client: client, clock: clock, timeout: timeout, reads: make(chan struct{}, maxReads), accounts: map[string]*tasksOf{}}
}

// page returns the tasks of a page, newest first, and how many there are on all pages.
// Creation times are whole seconds; within one, IDs tell the age, and they make the order the
// same whoever asks.
func (l *listing) page(ctx context.Context, namespace string, offset int64, limit int) ([]qcloud.Task, int64, error) {
	entries, err := l.entries(ctx, namespace)
	if err != nil {
		return nil, 0, err
	}
	total := int64(len(entries))
	from := min(offset, total)
	tasks, err := l.tell(ctx, namespace, entries[from:min(from+int64(limit), total)])
	return tasks, total, err
}

// entries returns all tasks of a namespace as they were at one moment after the call.
func (l *listing) entries(ctx context.Context, namespace string) ([]entry, error) {
	l.mu.Lock()
	of := l.accounts[namespace]
	if of == nil {
		of = &tasksOf{tasks: map[types.UID]known{}}
		l.accounts[namespace] = of
	}
	of.used = l.clock.Now()
	if of.next == nil {
		of.next = &read{done: make(chan struct{})}
		if !of.reading {
			of.reading = true
			go l.work(context.WithoutCancel(ctx), namespace, of)
		}
	}
	awaited := of.next
	l.mu.Unlock()
	select {
	case <-awaited.done:
		return awaited.entries, awaited.err
	case <-ctx.Done():
		return nil, fmt.Errorf("list tasks in namespace %s: %w", namespace, ctx.Err())
	}
}

// work reads the list for as long as anybody waits for it.
func (l *listing) work(ctx context.Context, namespace string, of *tasksOf) {
	for {
		rest := time.NewTimer(of.rest.Sub(l.clock.Now()))
		select {
		case <-rest.C:
		case <-ctx.Done():
		}
		rest.Stop()
		l.reads <- struct{}{}
		l.mu.Lock()
		now := of.next
		of.next = nil
		l.mu.Unlock()
		began := l.clock.Now()
		now.entries, now.err = l.metadata(ctx, namespace)
		took := l.clock.Since(began)
		<-l.reads
		l.mu.Lock()
		of.rest = began.Add(took + min(took, longestRest))
		if now.err == nil {
			l.forgetGone(of, now.entries)
		}
		more := of.next != nil
		of.reading = more
		l.mu.Unlock()
		close(now.done)
		if !more {
			return
		}
	}
}

// metadata reads the list, newest first.
func (l *listing) metadata(ctx context.Context, namespace string) ([]entry, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	var all metav1.PartialObjectMetadataList
	all.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("BatchTaskList"))
	// Without a limit: with one, older API servers read everything from etcd.
	if err := l.client.List(ctx, &all, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list tasks in namespace %s: %w", namespace, err)
	}
	entries := make([]entry, len(all.Items))
	for i := range all.Items {
		task := &all.Items[i]
		entries[i] = entry{name: task.Name, version: task.ResourceVersion, uid: task.UID, created: task.CreationTimestamp.Unix(), id: task.Labels[v1alpha1.LabelTaskID]}
		if taskid.Valid(task.Name) {
			entries[i].id = task.Name
		}
	}
	slices.SortFunc(entries, func(x, y entry) int {
		return cmp.Or(cmp.Compare(y.created, x.created), cmp.Compare(y.id, x.id), cmp.Compare(x.name, y.name))
	})
	return entries, nil
}

// tell returns the tasks, without those that have been deleted meanwhile.
func (l *listing) tell(ctx context.Context, namespace string, page []entry) ([]qcloud.Task, error) {
	told := make([]*qcloud.Task, len(page))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	for i, e := range page {
		if task, ok := l.recall(namespace, e); ok {
			told[i] = &task
			continue
		}
		group.Go(func() error {
			var task v1alpha1.BatchTask
			err := l.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: e.name}, &task)
			if apierrors.IsNotFound(err) || err == nil && task.UID != e.uid {
				return nil
			}
			if err != nil {
				return fmt.Errorf("read task %s/%s: %w", namespace, e.name, err)
			}
			described := describe(&task)
			told[i] = &described
			l.remember(namespace, &task, described)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	tasks := make([]qcloud.Task, 0, len(page))
	for _, task := range told {
		if task != nil {
			tasks = append(tasks, *task)
		}
	}
	return tasks, nil
}

func (l *listing) recall(namespace string, e entry) (qcloud.Task, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.accounts[namespace]
	if of == nil {
		return qcloud.Task{}, false
	}
	k, ok := of.tasks[e.uid]
	return k.task, ok && k.version == e.version
}

// remember keeps a task as it was told. Where there is no room, the account that has asked
// longest ago is forgotten; one that has more than its part begins anew.
func (l *listing) remember(namespace string, task *v1alpha1.BatchTask, told qcloud.Task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.accounts[namespace]
	if of == nil {
		return
	}
	if len(of.tasks) >= maxKnown/8 {
		l.known -= len(of.tasks)
		clear(of.tasks)
	}
	if _, exists := of.tasks[task.UID]; !exists {
		l.known++
	}
	of.tasks[task.UID] = known{task.ResourceVersion, told}
	for l.known > maxKnown {
		oldest := ""
		for name, other := range l.accounts {
			if !other.reading && other != of && (oldest == "" || other.used.Before(l.accounts[oldest].used)) {
				oldest = name
			}
		}
		if oldest == "" {
			return
		}
		l.known -= len(l.accounts[oldest].tasks)
		delete(l.accounts, oldest)
	}
}

// forgetGone forgets what is not in the list any more.
func (l *listing) forgetGone(of *tasksOf, entries []entry) {
	if len(of.tasks) == 0 {
		return
	}
	there := make(map[types.UID]struct{}, len(entries))
	for _, e := range entries {
		there[e.uid] = struct{}{}
	}
	for uid := range of.tasks {
		if _, ok := there[uid]; !ok {
			delete(of.tasks, uid)
			l.known--
		}
	}
}

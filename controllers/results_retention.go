package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/lease"
)

const (
	// retentionEvery is how often results of tasks that are gone are looked for, and
	// retentionPause the greatest pause where a database cannot be read.
	retentionEvery, retentionPause = 5 * time.Minute, time.Hour
	// retentionReads is how many tasks are looked for live in one sweep of a database, which
	// may say that it keeps results of any number. The next sweep goes on.
	retentionReads = 1000

	failedRetention = "Cannot remove the results of tasks that are gone"
)

// ResultsRetention removes the results of tasks that do not exist any more, on the
// leader: they are kept as long as the task. It compares what is there, so that it
// does not matter who deleted a task, and who was running then.
//
// The cache only says what need not be looked at. Before something is deleted the task is
// looked for live, and it is deleted as it was when that was done: if a run takes the
// results over in between, they stay.
type ResultsRetention struct {
	Client  client.Client
	Live    client.Reader                         // reads past every cache
	Results func(context.Context) []fleet.Results // each database once, and the same each time
	Clock   clock.WithTicker
	// Lease is what the process is elected by; nil for none.
	Lease *lease.Lease

	lanes lanes[fleet.Results]
}

var _ manager.LeaderElectionRunnable = (*ResultsRetention)(nil)

// NeedLeaderElection implements [manager.LeaderElectionRunnable].
func (*ResultsRetention) NeedLeaderElection() bool { return true }

// Start implements [manager.Runnable].
func (r *ResultsRetention) Start(ctx context.Context) error {
	r.lanes.clock, r.lanes.most = r.Clock, retentionPause
	defer r.lanes.wait()
	return periodically(ctx, r.Clock, retentionEvery, failedRetention, r.sweep)
}

// sweep looks at all databases, each by itself.
func (r *ResultsRetention) sweep(ctx context.Context) error {
	for _, results := range r.Results(ctx) {
		r.lanes.run(ctx, results, failedRetention, func(ctx context.Context) error { return r.sweepDatabase(ctx, results) })
	}
	r.lanes.sweep()
	return nil
}

// sweepDatabase removes what one database keeps of tasks that are gone.
func (r *ResultsRetention) sweepDatabase(ctx context.Context, results fleet.Results) error {
	var errs []error
	look := &liveTasks{reader: r.Live, namespaces: map[string]map[types.UID]bool{}}
	for after, reads := "", 0; reads < retentionReads; {
		// First what is kept, then what exists: a task that comes in between is not
		// among the former.
		kept, err := results.Tasks(ctx, after)
		if err != nil || len(kept) == 0 {
			return errors.Join(append(errs, err)...)
		}
		after = kept[len(kept)-1].TaskUID
		existing, err := r.existing(ctx)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, task := range kept {
			if existing[task.TaskUID] || reads == retentionReads {
				continue
			}
			reads++
			errs = append(errs, r.remove(ctx, results, look, task))
		}
	}
	return errors.Join(errs...)
}

// remove removes the results of a task that the cache does not show, if it is gone.
func (r *ResultsRetention) remove(ctx context.Context, results fleet.Results, look *liveTasks, task fleet.KeptResults) error {
	if exists, err := look.exists(ctx, task); err != nil || exists {
		return err
	}
	if r.Lease != nil {
		if _, sure := r.Lease.Hold(); !sure {
			return nil // the next sweep looks again, here or elsewhere
		}
	}
	err := results.Delete(ctx, task)
	switch {
	case errors.Is(err, fleet.ErrForeignEpoch):
		return nil
	case err != nil:
		return err
	}
	logf.FromContext(ctx).Info("Removed the results of a task that is gone", "namespace", task.Namespace, "name", task.TaskName, "taskUID", task.TaskUID)
	return nil
}

func (r *ResultsRetention) existing(ctx context.Context) (map[string]bool, error) {
	var tasks v1alpha1.BatchTaskList
	if err := r.Client.List(ctx, &tasks, client.UnsafeDisableDeepCopy); err != nil { // they are only read
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	existing := make(map[string]bool, len(tasks.Items))
	for i := range tasks.Items {
		existing[string(tasks.Items[i].UID)] = true
	}
	return existing, nil
}

// liveTasks looks for tasks past the cache.
type liveTasks struct {
	reader client.Reader
	// namespaces are the tasks of namespaces that had to be listed, for results that do not
	// say the name of their task.
	namespaces map[string]map[types.UID]bool
}

func (l *liveTasks) exists(ctx context.Context, kept fleet.KeptResults) (bool, error) {
	if kept.TaskName == "" {
		return l.isListed(ctx, kept)
	}
	task := &metav1.PartialObjectMetadata{}
	task.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("BatchTask"))
	err := l.reader.Get(ctx, types.NamespacedName{Namespace: kept.Namespace, Name: kept.TaskName}, task)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for task %s/%s: %w", kept.Namespace, kept.TaskName, err)
	}
	return string(task.UID) == kept.TaskUID, nil
}

func (l *liveTasks) isListed(ctx context.Context, kept fleet.KeptResults) (bool, error) {
	uids, ok := l.namespaces[kept.Namespace]
	if !ok {
		tasks := &metav1.PartialObjectMetadataList{}
		tasks.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("BatchTaskList"))
		if err := l.reader.List(ctx, tasks, client.InNamespace(kept.Namespace)); err != nil {
			return false, fmt.Errorf("look for the tasks of namespace %s: %w", kept.Namespace, err)
		}
		uids = map[types.UID]bool{}
		for i := range tasks.Items {
			uids[tasks.Items[i].UID] = true
		}
		l.namespaces[kept.Namespace] = uids
	}
	return uids[types.UID(kept.TaskUID)], nil
}

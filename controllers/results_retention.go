package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// retentionEvery is how often results of tasks that are gone are looked for.
const retentionEvery = 5 * time.Minute

// ResultsRetention removes the results of tasks that do not exist any more, on the
// leader: they are kept as long as the task. It compares what is there, so that it
// does not matter who deleted a task, and who was running then. A task is known to the
// cache before anything is recorded of it, for it is run from there.
type ResultsRetention struct {
	Client  client.Client
	Results func(context.Context) []fleet.Results
	Clock   clock.WithTicker
}

var _ manager.LeaderElectionRunnable = (*ResultsRetention)(nil)

// NeedLeaderElection implements [manager.LeaderElectionRunnable].
func (*ResultsRetention) NeedLeaderElection() bool { return true }

// Start implements [manager.Runnable].
func (r *ResultsRetention) Start(ctx context.Context) error {
	return periodically(ctx, r.Clock, retentionEvery, "Cannot remove the results of tasks that are gone", r.sweep)
}

func (r *ResultsRetention) sweep(ctx context.Context) error {
	var errs []error
	for _, results := range r.Results(ctx) {
		// First what is kept, then what exists: a task that comes in between is not
		// among the former.
		kept, err := results.Tasks(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		existing, err := r.existing(ctx)
		if err != nil {
			return err
		}
		for _, uid := range kept {
			if existing[uid] {
				continue
			}
			if err := results.Delete(ctx, uid); err != nil {
				errs = append(errs, err)
				continue
			}
			logf.FromContext(ctx).Info("Removed the results of a task that is gone", "taskUID", uid)
		}
	}
	return errors.Join(errs...)
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

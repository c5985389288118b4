// Package controllers holds the reconcilers. Each reads from top to bottom: get,
// observe, decide, write the status, act. Decisions are pure functions.
package controllers

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/lease"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/quota"
)

// Parts are what the reconcilers work with.
type Parts struct {
	Ledger   *quota.Ledger
	Store    fleet.Store
	Executor Executor
	Wake     *Wakeups
	Metrics  *Metrics
	Clock    clock.PassiveClock
	// Results returns where results of tasks are kept; nil for nowhere.
	Results func(context.Context) []fleet.Results
	// Lease is what the process is elected by.
	Lease *lease.Lease
	// Stop ends the process with an error.
	Stop func(error)
	// StatusWrites is how many writes of progress a second all running tasks share; 0 for
	// any number.
	StatusWrites float64
	// Grace is how long a slot is kept whose task has not appeared.
	Grace time.Duration
	// Quarantine is how long a product ID is kept for a namespace whose product is gone.
	Quarantine time.Duration
}

// Setup registers the reconcilers and the indexes they need.
func Setup(ctx context.Context, mgr ctrl.Manager, parts Parts) error {
	if err := Index(ctx, mgr); err != nil {
		return err
	}
	if err := WatchLedgers(ctx, mgr, parts.Ledger); err != nil {
		return err
	}
	if err := parts.Metrics.state.watch(ctx, mgr.GetCache()); err != nil {
		return err
	}
	recorder := mgr.GetEventRecorder("batchtask")
	for name, reconciler := range map[string]interface{ SetupWithManager(mgr ctrl.Manager) error }{
		"BatchTask": &BatchTaskReconciler{
			Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Gate: parts.Ledger, Executor: parts.Executor,
			Clock: parts.Clock, Recorder: recorder, Metrics: parts.Metrics, Wake: parts.Wake,
			Lease: parts.Lease, Stop: parts.Stop, StatusWrites: parts.StatusWrites,
		},
		"Product": &ProductReconciler{
			Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Store: parts.Store, Clock: parts.Clock, Recorder: recorder, Quarantine: parts.Quarantine,
		},
		"history":        &HistoryReconciler{Client: mgr.GetClient()},
		"ProductIDClaim": &ProductIDClaimReconciler{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Clock: parts.Clock, Quarantine: parts.Quarantine},
		"TaskQuota":      &TaskQuotaReconciler{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Ledger: parts.Ledger, Executor: parts.Executor, Grace: parts.Grace},
	} {
		if err := reconciler.SetupWithManager(mgr); err != nil {
			return fmt.Errorf("set up the %s controller: %w", name, err)
		}
	}
	if err := mgr.Add(&Acknowledgements{Client: mgr.GetClient(), Store: parts.Store, Clock: clock.RealClock{}}); err != nil {
		return fmt.Errorf("add what counts acknowledgements: %w", err)
	}
	if parts.Results != nil {
		if err := mgr.Add(&ResultsRetention{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Results: parts.Results, Clock: clock.RealClock{}, Lease: parts.Lease}); err != nil {
			return fmt.Errorf("add the retention of results: %w", err)
		}
	}
	return nil
}

// WatchLedgers lets a ledger know what others have written, on every replica: the
// webhooks change it too.
func WatchLedgers(ctx context.Context, mgr ctrl.Manager, ledger *quota.Ledger) error {
	informer, err := mgr.GetCache().GetInformer(ctx, &v1alpha1.TaskQuota{}, cache.BlockUntilSynced(false))
	if err == nil {
		_, err = informer.AddEventHandler(ledger.Watching())
	}
	if err != nil {
		return fmt.Errorf("watch TaskQuotas: %w", err)
	}
	return nil
}

// Index adds the cache indexes that the reconcilers need.
func Index(ctx context.Context, mgr ctrl.Manager) error {
	if err := product.Index(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	if err := product.IndexClaims(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	byID := func(o client.Object) []string { return []string{o.(*v1alpha1.BatchTask).Spec.ProductID} } //nolint:forcetypeassert // indexed as such
	if err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.BatchTask{}, product.FieldProductID, byID); err != nil {
		return fmt.Errorf("index tasks by %s: %w", product.FieldProductID, err)
	}
	return nil
}

// staleRetry is when to look again after something was seen that the cache does
// not show yet.
const staleRetry = 10 * time.Millisecond

// retryConflict turns a write that was based on an old state into another try with
// the new one, which the cache will have in a moment, and one of an object that is
// gone into nothing.
func retryConflict(err error) (reconcile.Result, error) {
	if apierrors.IsConflict(err) {
		return reconcile.Result{RequeueAfter: staleRetry}, nil
	}
	return reconcile.Result{}, client.IgnoreNotFound(err)
}

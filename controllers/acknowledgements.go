package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

const (
	// acknowledgedEvery is how often status.devices.acknowledged is brought up to date, and
	// acknowledgedPause the greatest pause where the devices of a product cannot be read.
	acknowledgedEvery, acknowledgedPause = 3 * time.Second, time.Minute

	failedAcknowledgements = "Cannot bring the acknowledged devices of tasks up to date"
)

// Acknowledgements keeps status.devices.acknowledged of UpdateShadow tasks up to
// date, on the leader, as long as the tasks exist. It is no part of the reconciler:
// devices acknowledge long after their task has finished, and whenever they like, and
// all of them together cost one write of a task in a while.
//
// The shadows hold what each device has acknowledged, and the store counts that, so
// nothing is counted twice or lost by a crash. A device that is deleted, or whose shadow
// has forgotten the task, had acknowledged it all the same; see [totals].
type Acknowledgements struct {
	Client client.Client
	Store  fleet.Store
	Clock  clock.WithTicker

	totals totals
	lanes  lanes[fleet.Product]
}

var _ manager.LeaderElectionRunnable = (*Acknowledgements)(nil)

// NeedLeaderElection implements [manager.LeaderElectionRunnable].
func (*Acknowledgements) NeedLeaderElection() bool { return true }

// Start implements [manager.Runnable].
func (a *Acknowledgements) Start(ctx context.Context) error {
	a.lanes.clock, a.lanes.most = a.Clock, acknowledgedPause
	if err := periodically(ctx, a.Clock, acknowledgedEvery, failedAcknowledgements, func(ctx context.Context) error { return a.report(ctx, false) }); err != nil {
		return err
	}
	a.lanes.wait()
	// A last time, also those whose turn it is not: the next leader begins with what the
	// status says.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), acknowledgedEvery)
	defer cancel()
	defer a.lanes.wait()
	if err := a.report(last, true); err != nil {
		logf.FromContext(ctx).Error(err, failedAcknowledgements)
	}
	return nil
}

// report brings all tasks up to date whose turn it is.
func (a *Acknowledgements) report(ctx context.Context, all bool) error {
	var tasks v1alpha1.BatchTaskList
	if err := a.Client.List(ctx, &tasks, client.UnsafeDisableDeepCopy); err != nil { // they are only read
		return fmt.Errorf("list tasks: %w", err)
	}
	now := a.Clock.Now()
	open := map[fleet.Product][]*v1alpha1.BatchTask{}
	for i := range tasks.Items {
		if task := &tasks.Items[i]; a.totals.due(task, now, all) {
			p := fleet.Product{Namespace: task.Namespace, ProductID: task.Spec.ProductID}
			open[p] = append(open[p], task)
		}
	}
	a.totals.forget()
	for p, tasks := range open {
		a.lanes.run(ctx, p, failedAcknowledgements, func(ctx context.Context) error { return a.reportProduct(ctx, p, tasks) })
	}
	a.lanes.sweep()
	return nil
}

// mayGrow reports whether devices may yet acknowledge a task. A task that runs may
// have changed more shadows than it has counted, but it counts what it is for before it
// changes any.
func mayGrow(task *v1alpha1.BatchTask) bool {
	if task.Spec.TaskType != v1alpha1.TaskTypeUpdateShadow || task.Status.Devices == nil {
		return false
	}
	return !task.Status.Phase.Finished() || task.Status.Devices.Acknowledged < task.Status.Devices.Matched
}

func (a *Acknowledgements) reportProduct(ctx context.Context, p fleet.Product, tasks []*v1alpha1.BatchTask) error {
	uids := make([]string, len(tasks))
	for i, task := range tasks {
		uids[i] = string(task.UID)
	}
	counts, err := a.Store.Acknowledged(ctx, p, uids)
	if err != nil {
		return fmt.Errorf("count what the devices of product %s/%s have acknowledged: %w", p.Namespace, p.ProductID, err)
	}
	var errs []error
	for i, task := range tasks {
		n, gone := a.totals.add(task, counts[uids[i]], a.Clock.Now())
		if n > task.Status.Counts().Acknowledged || gone != task.Status.AcknowledgedGone {
			errs = append(errs, a.write(ctx, task, n, gone))
		}
	}
	return errors.Join(errs...)
}

// write sets the two fields, on the condition that the status is still the one that they
// were computed from: the count of another leader must not fall.
func (a *Acknowledgements) write(ctx context.Context, task *v1alpha1.BatchTask, n, gone int64) error {
	target := &v1alpha1.BatchTask{}
	target.Namespace, target.Name = task.Namespace, task.Name
	patch := client.RawPatch(client.Merge.Type(), fmt.Appendf(nil,
		`{"metadata":{"uid":%q,"resourceVersion":%q},"status":{"acknowledgedGone":%d,"devices":{"acknowledged":%d}}}`, task.UID, task.ResourceVersion, gone, n))
	if err := a.Client.Status().Patch(ctx, target, patch); !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return err
	}
	return nil // gone, another one of the name, or to be looked at again as it is now
}

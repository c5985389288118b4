package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/lease"
)

// The fence: who may write what of a task.
//
//	nothing runs here   a status is written, and a run begun, only while the Lease is surely
//	                    held; the write that comes before the run puts the epoch there
//	a run is here       its progress and its end are written only on a checkpoint of the
//	                    same epoch, and on the version that was read
//
// A leader that stood still while another was elected holds a version, or an epoch, that is
// not there any more. So its write is refused, or not even made, and its run ends.

const (
	// doubtRetry is when to look again whether the Lease has been renewed.
	doubtRetry = time.Second
	// abandonedFor is how long a task is left alone that another manager was found to run.
	// The leader finds none, except of a manager that runs beside it without an election.
	abandonedFor = 15 * time.Second
)

// errOldResources : the API server keeps no epoch.
var errOldResources = errors.New("the custom resources of the cluster are older than this program: status.checkpoint.epoch of " +
	"BatchTasks is not kept, so nobody could tell two managers apart; apply the CRDs of this version (config/crd) first")

// hold returns the right to run tasks, and whether it is sure. Without a Lease nobody is bound.
func (r *BatchTaskReconciler) hold() (lease.Hold, bool) {
	if r.Lease == nil {
		return lease.Hold{}, true
	}
	return r.Lease.Hold()
}

// epochOf is the epoch of the manager that runs a task; "" for none.
func epochOf(task *v1alpha1.BatchTask) string {
	if task.Status.Checkpoint == nil {
		return ""
	}
	return task.Status.Checkpoint.Epoch
}

// judge looks, live, whose a task is that has a run here, after a write of its progress
// was refused or another's epoch was seen. Ours, it has been written since, by this process
// with an answer that was lost, or by somebody who wrote other things: then the next
// step is decided on what is there now. Else the run ends, without another word.
func (r *BatchTaskReconciler) judge(ctx context.Context, task *v1alpha1.BatchTask, seen observation) (reconcile.Result, error) {
	name := client.ObjectKeyFromObject(task)
	live := &v1alpha1.BatchTask{}
	switch err := r.Live.Get(ctx, name, live); {
	case apierrors.IsNotFound(err) || (err == nil && live.UID != task.UID):
		r.forget(name)
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("read task live: %w", err)
	}
	switch {
	case live.Status.Phase.Finished():
		r.Executor.Forget(name)
	case epochOf(live) != seen.hold.Epoch():
		r.Executor.Forget(name)
		r.abandoned.add(name, seen.now.Add(abandonedFor))
		logf.FromContext(ctx).Info("Another manager runs this task, so its run here has ended", "epoch", epochOf(live), "own", seen.hold.Epoch())
		return reconcile.Result{RequeueAfter: abandonedFor}, nil
	}
	r.written.keep(live)
	return reconcile.Result{RequeueAfter: staleRetry}, nil
}

// stamp signs what is to be written of a task with the epoch, and raises its sequence if
// anything is. A finished task has no epoch, since nobody runs it; that its last write
// was the owner's shows in the sequence.
func (d *decision) stamp(task *v1alpha1.BatchTask, epoch string) {
	old := v1alpha1.Checkpoint{}
	if task.Status.Checkpoint != nil {
		old = *task.Status.Checkpoint
	}
	switch {
	case d.status.Phase.Finished():
		d.status.Checkpoint = nil
		if old.Epoch != "" {
			d.status.Checkpoint = &v1alpha1.Checkpoint{Sequence: old.Sequence + 1}
		}
		return
	case d.status.Phase != v1alpha1.TaskPhaseProcessing || epoch == "":
		return
	case d.status.Checkpoint == nil:
		d.status.Checkpoint = &v1alpha1.Checkpoint{}
	}
	d.status.Checkpoint.Epoch, d.status.Checkpoint.Sequence = epoch, old.Sequence
	if !equality.Semantic.DeepEqual(d.status, task.Status) {
		d.status.Checkpoint.Sequence++
	}
}

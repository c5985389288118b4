package executor

import (
	"errors"
	"fmt"

	"batchtask.dev/operator/internal/fleet"
)

// A run may serve devices only while its process holds the Lease of the election, in the
// term in which the task was taken over:
//
//	sure       devices are taken in and messages sent
//	in doubt   nothing is taken in and nothing new is sent; what is on its way lands, is
//	           counted and kept. A renewal lets the run go on.
//	over       nothing is sent, also not again, and the run is dropped. The task is begun
//	           anew, here or elsewhere, at its checkpoint.
//
// So a process that stood still and wakes up sends at most what it had handed to the
// system before, and that is within one resend limit behind the checkpoint, as all of it is.

// errDoubt is what holds a run up that is in doubt.
var errDoubt = errors.New("the Lease of the leader election has not been renewed in time")

// epochOf names a run in what is stored: no other run has it, of this process or another.
func (e *Executor) epochOf(task Task) string {
	return fmt.Sprintf("%s#%d", task.Hold.Epoch(), e.made.Add(1))
}

// mayFeed waits until it is sure that the run may serve devices. It returns false when
// feeding has ended.
func (r *run) mayFeed() bool {
	if r.task.Hold.Sure() {
		return r.feeding.Err() == nil
	}
	r.report("waiting", errDoubt)
	err := r.task.Hold.Wait(r.feeding)
	if err != nil {
		if r.feeding.Err() == nil { // the term is over
			r.exec.drop(r)
		}
		return false
	}
	r.report("", nil)
	return true
}

// lost drops a run that is known to have lost its task: its term is over, or another run
// records its results.
func (r *run) lost(err error) bool {
	if !errors.Is(err, fleet.ErrForeignEpoch) && r.task.Hold.Valid() {
		return false
	}
	r.exec.drop(r)
	return true
}

// drop ends a run without another word, and tells the reconciler, so that it sees whose
// the task is.
func (e *Executor) drop(r *run) {
	r.abandon()
	e.mu.Lock()
	known := e.runs[r.task.NamespacedName] == r
	if known {
		delete(e.runs, r.task.NamespacedName)
	}
	e.mu.Unlock()
	if known {
		e.opts.Log.Info("A run has lost its task and ends", "task", r.task.NamespacedName, "epoch", r.epoch)
		e.notify(r.task.NamespacedName)
	}
}

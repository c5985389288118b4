package executor

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"batchtask.dev/operator/internal/fleet"
)

// How a run ends. What can end it before every device has its result meets here:
//
//	expire   the deadline: what has no result has failed, named or not
//	stop     cancelled or suspended: wait for what is on its way, then leave
//	broke    a panic: what has no result has failed, and nothing more is asked of the store
//	abandon  the object is gone or the process ends: leave at once
//
// Whichever comes first under the lock wins, except that the deadline and a cancel end a
// suspended run that has not left yet; a result that arrives later finds its device settled
// and changes nothing.
//
// Leaving needs the fleet store: what has a result is to be recorded, and what has none to
// be counted. It may be away. After the deadline or a cancel, patience bounds how long
// that may take; then the run surrenders: what is known is counted, also what could not be
// recorded, and at the deadline the rest of what matched has failed without names. A run
// that is only suspended may wait longer, since it holds nobody up, and its acknowledgements
// are worth keeping: until its deadline or a cancel, or until the process ends.

const deadlineMessage = "had no result when the task's time was over"

// expire ends feeding at the deadline and gives up every device on its way.
func (r *run) expire() {
	if r.account.expire() {
		r.dead.Store(true)
		r.stopFeed()
		r.loseThread()
	}
}

// stop asks the run to end with outcome Cancelled or Suspended.
func (r *run) stop(outcome Outcome) {
	if r.account.ask(outcome) {
		r.stopFeed()
		if outcome == OutcomeCancelled {
			r.loseThread()
		}
	}
}

// loseThread begins the time that the run's patience lasts.
func (r *run) loseThread() {
	select {
	case r.ending <- struct{}{}:
	default: // it has begun
	}
}

// guard calls do. A panic in it ends this run and no other.
func (r *run) guard(do func()) {
	defer r.caught()
	do()
}

// caught is to be deferred by whatever works for this run alone.
func (r *run) caught() {
	if said := recover(); said != nil {
		r.broke(said, debug.Stack())
	}
}

// broke ends the run because of a panic.
func (r *run) broke(said any, stack []byte) {
	r.exec.opts.Log.Error(fmt.Errorf("panic: %v", said), "A task has met a fault in the program and fails",
		"task", r.task.NamespacedName, "uid", r.task.UID, "stack", string(stack))
	r.exec.metrics.panics.Inc()
	r.account.ruin(fmt.Sprint(said))
	r.dead.Store(true)
	r.stopFeed()
	r.impatient()
}

// conclude ends the run once feeding has ended, and returns its outcome; none if
// it was abandoned.
func (r *run) conclude(served bool) Outcome {
	outcome := OutcomeNone
	r.guard(func() { outcome = r.leave(served) })
	if r.account.ruined() == "" {
		return outcome
	}
	if r.life.Err() != nil {
		return OutcomeNone
	}
	// What is in the account may be wrong by one device that was being settled. That beats
	// a task that never ends.
	r.account.surrender(true, r.account.ruined())
	return OutcomeBroken
}

// leave does what is to be done before the run may end.
func (r *run) leave(served bool) Outcome {
	expired, asked := r.account.ending()
	var outcome Outcome
	done := true
	switch {
	case served && !expired:
		outcome = OutcomeServed
	case r.life.Err() != nil:
		return OutcomeNone
	case expired:
		outcome, done = OutcomeExpired, r.countRest()
	case asked == OutcomeNone:
		return OutcomeNone
	default:
		r.drain()
		switch {
		case r.feed.allServed():
			outcome = OutcomeServed // the last results came while draining
		case asked == OutcomeCancelled && !r.takeOver():
			outcome, done = OutcomeCancelled, false
		default:
			outcome = r.account.leave()
		}
	}
	if done && r.recorder.record(r.patient) {
		return outcome
	}
	if r.life.Err() != nil {
		return OutcomeNone // abandoned, or the process is ending
	}
	if outcome == OutcomeSuspended { // the deadline has come, or a cancel
		if outcome = OutcomeCancelled; r.account.isExpired() {
			outcome = OutcomeExpired
		}
	}
	r.account.surrender(outcome == OutcomeExpired, "")
	return outcome
}

// drain waits for the results of what is on its way, but no longer than the drain
// time-out; after it nothing more is sent and no result counts.
func (r *run) drain() {
	timer := r.exec.opts.Clock.NewTimer(r.exec.opts.DrainTimeout)
	defer timer.Stop()
	for r.account.onTheWay() > 0 {
		select {
		case <-r.patient.Done():
		case <-r.settled:
			continue
		case <-timer.C():
		case <-r.life.Done():
		}
		break
	}
	r.dead.Store(true)
}

// takeOver counts what an earlier run has recorded behind the checkpoint, for a run that is
// cancelled before it has done so: nobody would later.
func (r *run) takeOver() bool {
	return r.persistIn(r.patient, "reading the results that are recorded", func(ctx context.Context) error {
		if err := r.recorder.open(ctx); !errors.Is(err, fleet.ErrNoProduct) {
			return err
		}
		return nil // nobody can say any more where they are
	})
}

// countRest counts the devices that had not been reached at the deadline as
// failed. The first few are named, the others only counted.
func (r *run) countRest() bool {
	r.account.failRest() // what feed took in while the deadline passed
	const doing = "counting the devices that were not reached"
	noProduct := false
	if !r.persistIn(r.patient, doing, func(ctx context.Context) error {
		if err := r.exec.store.Sync(ctx, r.task.Product.Namespace); err != nil {
			return err
		}
		err := r.recorder.open(ctx)
		if noProduct = errors.Is(err, fleet.ErrNoProduct); noProduct {
			return nil
		}
		return err
	}) {
		return false
	}
	if noProduct {
		r.account.failUnnamed()
		return true
	}
	if r.account.isRecorded() {
		return r.recorder.recordRest(r.feed.at)
	}
	return r.persistIn(r.patient, doing, func(ctx context.Context) error {
		names, more, err := r.exec.store.Scan(ctx, r.query(r.feed.at), MaxFailures)
		if err == nil {
			err = checkNames(names, r.feed.at, more)
		}
		if err != nil {
			return r.orUnnamed(err)
		}
		var others int64
		if more {
			if others, err = r.count(ctx, names[len(names)-1]); err != nil {
				return err
			}
		}
		r.account.failUnreached(names, others)
		return nil
	})
}

// orUnnamed counts without names where the product is gone, for then nobody can say any
// more which devices they are, and returns any other error.
func (r *run) orUnnamed(err error) error {
	if !errors.Is(err, fleet.ErrNoProduct) {
		return err
	}
	r.account.failUnnamed()
	return nil
}

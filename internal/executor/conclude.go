package executor

import (
	"context"
	"errors"

	"batchtask.dev/operator/internal/fleet"
)

// How a run ends. The three ways to end it before every device has its result
// meet here:
//
//	expire   the deadline: what has no result has failed, named or not
//	stop     cancelled or suspended: wait for what is on its way, then leave
//	abandon  the object is gone or the process ends: leave at once
//
// Whichever comes first under the lock wins; a result that arrives later finds
// its device settled and changes nothing.

const deadlineMessage = "had no result when the task's time was over"

// expire ends feeding at the deadline and gives up every device on its way.
func (r *run) expire() {
	if r.account.expire() {
		r.dead.Store(true)
		r.stopFeed()
	}
}

// stop asks the run to end with outcome Cancelled or Suspended.
func (r *run) stop(outcome Outcome) {
	if r.account.ask(outcome) {
		r.stopFeed()
	}
}

// conclude ends the run once feeding has ended, and returns its outcome; none if
// it was abandoned.
func (r *run) conclude(served bool) Outcome {
	expired, asked := r.account.ending()
	switch {
	case served && !expired:
		return OutcomeServed
	case r.life.Err() != nil:
		return OutcomeNone
	case expired:
		if !r.countRest() {
			return OutcomeNone
		}
		return OutcomeExpired
	case asked == OutcomeNone:
		return OutcomeNone
	}
	r.drain()
	if r.feed.allServed() {
		return OutcomeServed // the last results came while draining
	}
	return r.account.leave()
}

// drain waits for the results of what is on its way, but no longer than the drain
// time-out; after it nothing more is sent and no result counts.
func (r *run) drain() {
	timer := r.exec.opts.Clock.NewTimer(r.exec.opts.DrainTimeout)
	defer timer.Stop()
	for r.account.onTheWay() > 0 {
		select {
		case <-r.settled:
			continue
		case <-timer.C():
		case <-r.life.Done():
		}
		break
	}
	r.dead.Store(true)
}

// countRest counts the devices that had not been reached at the deadline as
// failed. The first few are named, the others only counted.
func (r *run) countRest() bool {
	r.account.failRest() // what feed took in while the deadline passed
	const doing = "counting the devices that were not reached"
	noProduct := false
	if !r.persistIn(r.life, doing, func(ctx context.Context) error {
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
	return r.persistIn(r.life, doing, func(ctx context.Context) error {
		names, more, err := r.exec.store.Scan(ctx, r.query(r.feed.at), MaxFailures)
		if err != nil {
			return r.orUnnamed(err)
		}
		var others int64
		if more {
			if others, err = r.exec.store.Count(ctx, r.query(names[len(names)-1])); err != nil {
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

package executor

import (
	"context"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// Where the fleet keeps the result of each device, what is recorded there is the
// checkpoint:
//
//	result ─▶ watermark ─▶ record ─▶ progress ─▶ status
//
// A run is no further ahead of what is recorded than its resend limit, and a resumed
// one goes on where the records end, whatever the status says. So the status may be
// a second old without a device being served twice for it, and the speed of a task
// is not that of the API server. The status never counts what is not recorded.

// restPage is how many devices that the deadline has left without a result are
// recorded at once.
const restPage = 5000

// openResults finds out where results are kept, and goes on where those end that
// have been recorded. The status is ahead of them only where somebody has removed
// some; then it counts. It is called before any device is taken in.
func (r *run) openResults(ctx context.Context) error {
	keeper, ok := r.exec.store.(fleet.ResultsKeeper)
	if !ok || r.keptIn() != nil {
		return nil
	}
	results, err := keeper.ResultsOf(ctx, r.task.Product)
	if err != nil || results == nil {
		return err
	}
	totals, err := results.Totals(ctx, string(r.task.UID), MaxFailures)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if totals.Upto > r.task.After {
		r.task.After, r.at = totals.Upto, totals.Upto
		r.tracker.resume(totals)
	}
	r.results, r.safe = results, r.snapshotLocked()
	return nil
}

// resume begins after what has been recorded. The tracker must be empty.
func (t *tracker) resume(totals fleet.ResultTotals) {
	t.cursor, t.succeeded, t.failed, t.failures = totals.Upto, totals.Succeeded, totals.Failed, nil
	for _, f := range totals.FirstFailed {
		t.failures = append(t.failures, v1alpha1.DeviceFailure{DeviceName: f.Name, Reason: f.Reason, Message: f.Message})
	}
}

// keptIn returns where results are kept; nil for nowhere.
func (r *run) keptIn() fleet.Results {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.results
}

// checkpoint asks for what the watermark has passed to be kept before the run has to
// wait for that: recorded or, where results are not kept, written to the status.
func (r *run) checkpoint() {
	if r.keptIn() == nil {
		r.exec.notify(r.task.NamespacedName)
		return
	}
	select {
	case r.toRecord <- struct{}{}:
	default: // that is to be done already
	}
}

// keepRecording records results whenever that is asked for, until done.
func (r *run) keepRecording(done <-chan struct{}) {
	for {
		select {
		case <-r.toRecord:
			r.record(r.life)
		case <-done:
			return
		}
	}
}

// record records what the watermark has passed, and then lets it count. It tries
// until it succeeds (true) or ctx ends.
func (r *run) record(ctx context.Context) bool {
	r.recording.Lock()
	defer r.recording.Unlock()
	r.mu.Lock()
	results, next := r.results, r.snapshotLocked()
	if results == nil {
		r.mu.Unlock()
		return true
	}
	part := r.tracker.since(r.safe.Mark)
	part.After, part.Upto = r.safe.Cursor, next.Cursor
	r.mu.Unlock()
	if part.Upto > part.After && !r.recordPart(ctx, results, part) {
		return false
	}
	r.mu.Lock()
	r.safe = next
	r.tracker.save(next.Mark)
	wake := r.wanted()
	r.mu.Unlock()
	if wake {
		r.signal()
	}
	return true
}

func (r *run) recordPart(ctx context.Context, results fleet.Results, part fleet.ResultRange) bool {
	part.At = r.exec.opts.Clock.Now()
	return r.persistIn(ctx, "recording results", func(ctx context.Context) error {
		return results.Record(ctx, string(r.task.UID), r.task.Product, part)
	})
}

// recordRest counts the devices that had not been reached at the deadline as failed,
// each with a result of its own.
func (r *run) recordRest(results fleet.Results) bool {
	if !r.record(r.life) {
		return false
	}
	r.recording.Lock()
	defer r.recording.Unlock()
	for after, more := r.at, true; more; {
		var names []string
		if !r.persistIn(r.life, "reading the devices that were not reached", func(ctx context.Context) (err error) {
			names, more, err = r.exec.store.Scan(ctx, r.query(after), restPage)
			return r.orUnnamed(err)
		}) {
			return false
		}
		if len(names) == 0 {
			break
		}
		part := fleet.ResultRange{After: after, Upto: names[len(names)-1]}
		for _, name := range names {
			part.Failed = append(part.Failed, fleet.Failure{Name: name, Reason: v1alpha1.ReasonDeadlineExceeded, Message: deadlineMessage})
		}
		if !r.recordPart(r.life, results, part) {
			return false
		}
		after = part.Upto
		r.mu.Lock()
		for _, name := range names {
			r.tracker.count(&tracked{name: name, result: failed, reason: v1alpha1.ReasonDeadlineExceeded, message: deadlineMessage})
		}
		r.safe = r.snapshotLocked()
		r.mu.Unlock()
	}
	return true
}

// since returns the results of the devices from this number to the watermark.
func (t *tracker) since(seq uint64) fleet.ResultRange {
	var part fleet.ResultRange
	for ; seq < t.head; seq++ {
		switch d := &t.ring[seq%uint64(len(t.ring))]; d.result {
		case succeeded:
			part.Succeeded = append(part.Succeeded, d.name)
		case failed:
			part.Failed = append(part.Failed, fleet.Failure{Name: d.name, Reason: d.reason, Message: d.message})
		case gone, pending:
		}
	}
	return part
}

package executor

import (
	"context"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// Where the fleet keeps the result of each device, a run records it there before it
// lets anybody know of a checkpoint that counts the device:
//
//	result ─▶ watermark ─▶ record ─▶ progress ─▶ status
//
// So whatever is counted in a status can be found. A crash between record and status
// leaves results of devices that the resumed task serves again; it removes them first.

// restPage is how many devices that the deadline has left without a result are
// recorded at once.
const restPage = 5000

// openResults finds out where results are kept, and removes those of devices that
// are about to be served again.
func (r *run) openResults(ctx context.Context) error {
	keeper, ok := r.exec.store.(fleet.ResultsKeeper)
	if !ok || r.keptIn() != nil {
		return nil
	}
	results, err := keeper.ResultsOf(ctx, r.task.Product)
	if err != nil || results == nil {
		return err
	}
	if err := results.Truncate(ctx, string(r.task.UID), r.task.After); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results, r.safe = results, r.snapshotLocked()
	return nil
}

// keptIn returns where results are kept; nil for nowhere.
func (r *run) keptIn() fleet.Results {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.results
}

// tell lets the reconciler know that there is progress; results come first.
func (r *run) tell() {
	if r.keptIn() == nil {
		r.exec.notify(r.task.NamespacedName)
		return
	}
	select {
	case r.toRecord <- struct{}{}:
	default: // that is to be done already
	}
}

// keepRecording records results whenever there are some to tell of, until done.
func (r *run) keepRecording(done <-chan struct{}) {
	for {
		select {
		case <-r.toRecord:
			if r.record(r.life) {
				r.exec.notify(r.task.NamespacedName)
			}
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
	defer r.mu.Unlock()
	r.safe = next
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
			return err
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

package executor

import (
	"context"
	"fmt"
	"sync/atomic"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/validation"
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

// recorder keeps the results of a run where its fleet keeps them. Where it keeps none,
// it does nothing.
type recorder struct {
	run      *run
	results  atomic.Value  // *kept, once it is known where
	writing  chan struct{} // holds one element while somebody records
	toRecord chan struct{} // has room for one signal: there is something to record
}

// kept is where results are kept.
type kept struct{ fleet.Results }

func newRecorder(r *run) *recorder {
	return &recorder{run: r, writing: make(chan struct{}, 1), toRecord: make(chan struct{}, 1)}
}

// keptIn returns where results are kept; nil for nowhere.
func (w *recorder) keptIn() fleet.Results {
	if k, ok := w.results.Load().(*kept); ok {
		return k.Results
	}
	return nil
}

// open finds out where results are kept, takes those of the task over, and goes on where
// those end that follow the checkpoint of the status without a gap. Behind a gap devices
// are served again: a server may have lost what was recorded in between. It is called by
// loop before any device is taken in.
func (w *recorder) open(ctx context.Context) error {
	r := w.run
	keeper, ok := r.exec.store.(fleet.ResultsKeeper)
	if !ok || w.keptIn() != nil {
		return nil
	}
	results, err := keeper.ResultsOf(ctx, r.task.Product)
	if err != nil || results == nil {
		return err
	}
	taking := fleet.ResultsRun{
		TaskUID: string(r.task.UID), Namespace: r.task.Namespace, TaskName: r.task.Name, Epoch: r.epoch, Sure: r.task.Hold.Sure,
	}
	totals, err := results.Take(ctx, taking, r.task.Product, r.feed.at, MaxFailures)
	if err == nil {
		err = checkTotals(totals)
	}
	if err != nil {
		return err
	}
	w.results.Store(&kept{results})
	r.account.resume(totals)
	r.feed.at = totals.Upto
	return nil
}

// mostDevices is more than any fleet has: a greater number is a fault of whoever counts.
const mostDevices = 1 << 48

// checkTotals returns an error where what a database answers cannot be. It would be refused
// as a status, again and again.
func checkTotals(totals fleet.ResultTotals) error {
	switch {
	case totals.Upto != "" && !validation.DeviceName(totals.Upto):
		return fmt.Errorf("the results that are kept reach to %q, which is no name of a device", clip(totals.Upto, maxReason))
	case totals.Succeeded < 0 || totals.Failed < 0 || totals.Succeeded > mostDevices || totals.Failed > mostDevices:
		return fmt.Errorf("results of %d and %d devices are kept, which cannot be", totals.Succeeded, totals.Failed)
	}
	for _, f := range totals.FirstFailed {
		if !validation.DeviceName(f.Name) {
			return fmt.Errorf("a result of %q is kept, which is no name of a device", clip(f.Name, maxReason))
		}
	}
	return nil
}

// request asks keepRecording to record.
func (w *recorder) request() {
	select {
	case w.toRecord <- struct{}{}:
	default: // that is to be done already
	}
}

// keepRecording records results whenever that is asked for, until done.
func (w *recorder) keepRecording(done <-chan struct{}) {
	for {
		select {
		case <-w.toRecord:
			w.record(w.run.patient)
		case <-done:
			return
		}
	}
}

// record records what the watermark has passed, and then lets it count. It tries
// until it succeeds (true) or ctx ends.
func (w *recorder) record(ctx context.Context) bool {
	if w.keptIn() == nil {
		return true
	}
	if !w.begin(ctx) {
		return false
	}
	defer w.end()
	parts, next := w.run.account.unrecorded()
	for _, part := range parts {
		if !w.write(ctx, part) {
			return false
		}
	}
	if w.run.account.record(next) {
		w.run.signal()
	}
	return true
}

// begin waits until nobody else records.
func (w *recorder) begin(ctx context.Context) bool {
	select {
	case w.writing <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *recorder) end() { <-w.writing }

// write is called between begin and end. It records a part, however often that takes.
func (w *recorder) write(ctx context.Context, part fleet.ResultRange) bool {
	r := w.run
	part.At, part.Epoch = r.exec.opts.Clock.Now(), r.epoch
	return r.persistIn(ctx, "recording results", func(ctx context.Context) error {
		return w.keptIn().Record(ctx, string(r.task.UID), r.task.Product, part)
	})
}

// recordRest counts the devices behind a name, which had not been reached at the
// deadline, as failed, each with a result of its own.
func (w *recorder) recordRest(after string) bool {
	r := w.run
	if !w.record(r.patient) {
		return false
	}
	if !w.begin(r.patient) {
		return false
	}
	defer w.end()
	for more := true; more; {
		var names []string
		if !r.persistIn(r.patient, "reading the devices that were not reached", func(ctx context.Context) (err error) {
			names, more, err = r.exec.store.Scan(ctx, r.query(after), restPage)
			if err == nil {
				err = checkNames(names, after, more)
			}
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
		if !w.write(r.patient, part) {
			return false
		}
		after = part.Upto
		r.account.failUnreached(names, 0)
	}
	return true
}

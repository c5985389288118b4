package executor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"batchtask.dev/operator/internal/fleet"
)

// run carries one task out:
//
//	readAhead ─ pages ─▶ feed ─ messages ─▶ publisher ─ results ─▶ account ─▶ recorder ─▶ status
//
// Each arrow leads to another goroutine. One, loop, is the run from beginning to end; it
// feeds. Results arrive from the publisher's goroutines in landed. Others beside it, pulse
// and keepRecording, watch the clock and record results. What they share is the account.
type run struct {
	exec  *Executor
	task  Task
	epoch string // names the run where its results are kept
	began time.Time

	life     context.Context    //nolint:containedctx // ended by abandon
	abandon  context.CancelFunc // drops the run at once
	feeding  context.Context    //nolint:containedctx // ended by the deadline, stop and abandon
	stopFeed context.CancelFunc
	// patient ends when the run must do without the fleet store: some time after its deadline
	// or a cancel, and with abandon.
	patient   context.Context //nolint:containedctx // see there
	impatient context.CancelFunc
	ending    chan struct{} // has room for one signal: that time begins

	account  *account
	feed     *feed
	recorder *recorder
	paging   *pageAccount

	dead    atomic.Bool   // nobody waits for results any more
	settled chan struct{} // has room for one signal: there is room, or nothing is left
}

func newRun(e *Executor, task Task) *run {
	r := &run{
		exec: e, task: task, began: e.opts.Clock.Now(), epoch: e.epochOf(task), account: newAccount(task, e.opts.ResendLimit),
		settled: make(chan struct{}, 1), ending: make(chan struct{}, 1), paging: &pageAccount{budget: e.pages},
	}
	life, cancel := context.WithCancel(e.ctx)
	r.life = life
	r.abandon = func() {
		r.dead.Store(true)
		cancel()
	}
	r.feeding, r.stopFeed = context.WithCancel(life)
	r.patient, r.impatient = context.WithCancel(life)
	r.feed, r.recorder = newFeed(r), newRecorder(r)
	return r
}

// loop is the run from beginning to end.
func (r *run) loop() {
	defer r.stopFeed()
	defer r.impatient()
	if !r.exec.opts.Clock.Now().Before(r.task.Deadline) {
		r.expire() // pulse would do it too, but perhaps after the first messages
	}
	var beside sync.WaitGroup
	done := make(chan struct{})
	beside.Go(func() { r.guard(func() { r.pulse(done) }) })
	beside.Go(func() { r.guard(func() { r.recorder.keepRecording(done) }) })

	served := false
	r.guard(func() { served = r.prepare() && r.feed.serve() })
	outcome := r.conclude(served)

	r.stopFeed()
	close(done)
	beside.Wait()
	r.feed.share.leave()
	r.paging.leave()
	if outcome == OutcomeNone {
		return // abandoned, or the process is ending
	}
	r.account.finish(outcome)
	r.exec.notify(r.task.NamespacedName)
}

// prepare waits until the fleet store can be relied on, and counts the devices.
func (r *run) prepare() bool {
	return r.persist("reading the devices", func(ctx context.Context) error {
		if err := r.exec.store.Sync(ctx, r.task.Product.Namespace); err != nil {
			return err
		}
		if err := r.recorder.open(ctx); err != nil {
			return err
		}
		if r.task.Matched > 0 {
			return nil // resumed: counted when it started
		}
		n, err := r.count(ctx, r.feed.at)
		if err != nil {
			return err
		}
		r.account.match(n)
		return nil
	})
}

// count counts the task's devices behind a name.
func (r *run) count(ctx context.Context, after string) (int64, error) {
	n, err := r.exec.store.Count(ctx, r.query(after))
	if err == nil && (n < 0 || n > mostDevices) {
		err = fmt.Errorf("the store has counted %d devices, which cannot be", n)
	}
	return n, err
}

// landed is called when the publisher has settled a message.
func (r *run) landed(seq uint64, res result, reason, message string) {
	then := r.account.land(seq, res, reason, message)
	switch {
	case then.late:
		r.feed.share.settle()
	case res == pending:
		r.feed.share.release(1, 0)
	default:
		r.feed.share.release(1, 1)
	}
	if then.wake {
		r.signal()
	}
	if then.tell {
		r.checkpoint()
	}
}

// reclaim gives the places of messages back that are not acknowledged in time.
func (r *run) reclaim() {
	if late := r.account.overdue(r.age() - r.exec.opts.AckTimeout); late > 0 {
		r.feed.share.forfeit(late)
	}
}

// age is how long ago the run began.
func (r *run) age() time.Duration { return r.exec.opts.Clock.Since(r.began) }

// outside is what holds the run up at the broker; "" for nothing.
func (r *run) outside() string {
	switch {
	case !r.exec.publisher.Connected():
		return "there is no connection to the MQTT broker"
	case r.feed.share.stopped():
		return fmt.Sprintf("the broker has not acknowledged %d messages within %s, as many as a task may have (--unacknowledged-limit): nothing more is sent until it has acknowledged some",
			r.exec.opts.UnacknowledgedLimit, r.exec.opts.AckTimeout)
	default:
		return ""
	}
}

// settle takes the result of a device that needs no message.
func (r *run) settle(seq uint64, res result, reason, message string) {
	if r.account.settle(seq, res, reason, message) {
		r.checkpoint()
	}
}

// saved is called when a checkpoint has been written to the status.
func (r *run) saved(mark uint64) {
	if r.account.save(mark) {
		r.signal()
	}
}

// signal wakes feeding.
func (r *run) signal() {
	select {
	case r.settled <- struct{}{}:
	default:
	}
}

// checkpoint asks for what the watermark has passed to be kept before the run has to
// wait for that: recorded or, where results are not kept, written to the status.
func (r *run) checkpoint() {
	if r.account.isRecorded() {
		r.recorder.request()
	} else {
		r.exec.notify(r.task.NamespacedName)
	}
}

// pulse tells of progress about once a second, ends feeding at the deadline, and the run's
// patience after its end.
func (r *run) pulse(done <-chan struct{}) {
	clk := r.exec.opts.Clock
	deadline := clk.NewTimer(max(r.task.Deadline.Sub(clk.Now()), 0))
	defer deadline.Stop()
	tick := clk.NewTicker(r.exec.opts.CheckpointInterval)
	defer tick.Stop()
	var over <-chan time.Time
	for {
		select {
		case <-tick.C():
			if r.lost(nil) {
				return
			}
			r.reclaim()
			if r.account.news(r.outside()) {
				r.checkpoint()
				if r.account.isRecorded() {
					r.exec.notify(r.task.NamespacedName) // of what has been recorded so far
				}
			}
		case <-deadline.C():
			r.expire()
		case <-r.ending:
			if over == nil {
				timer := clk.NewTimer(r.exec.opts.Patience)
				defer timer.Stop()
				over = timer.C()
			}
		case <-over:
			r.impatient()
		case <-r.life.Done():
			return
		case <-done:
			return
		}
	}
}

// persist calls do until it succeeds (true) or feeding ends (false).
func (r *run) persist(doing string, do func(context.Context) error) bool {
	return r.persistIn(r.feeding, doing, do)
}

func (r *run) persistIn(ctx context.Context, doing string, do func(context.Context) error) bool {
	backoff := newBackoff()
	for failed := false; ctx.Err() == nil; failed = true {
		err := do(ctx)
		if err == nil {
			if failed {
				r.report("", nil)
			}
			return true
		}
		if r.lost(err) {
			return false
		}
		if ctx.Err() != nil {
			if r.life.Err() == nil && r.patient.Err() != nil && r.account.isUntroubled() {
				r.report(doing, errNoAnswer)
			}
			return false
		}
		r.report(doing, err)
		r.pause(ctx, backoff.Step())
	}
	return false
}

var errNoAnswer = errors.New("there was no answer until the time for it was over")

// pause waits for a time or until ctx ends.
func (r *run) pause(ctx context.Context, d time.Duration) {
	timer := r.exec.opts.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C():
	case <-ctx.Done():
	}
}

// report says what holds the run up, or with a nil error that nothing does.
func (r *run) report(doing string, err error) {
	trouble := ""
	if err != nil {
		trouble = doing + ": " + err.Error()
		r.exec.opts.Log.Info("Task is held up, will try again", "task", r.task.NamespacedName, "trouble", trouble)
	}
	r.account.report(trouble)
}

func newBackoff() wait.Backoff {
	return wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 50, Cap: 5 * time.Second}
}

// query asks for the task's devices behind a name.
func (r *run) query(after string) fleet.Query {
	return fleet.Query{Product: r.task.Product, Filter: r.task.Filter, After: after, Until: r.task.Until}
}

package executor

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// feedBatch is how many devices are taken in at once.
const feedBatch = 256

// run carries one task out. One goroutine, loop, feeds: it takes devices in, which
// readAhead has read, and publishes. Results arrive from the publisher's goroutines in
// settle. Others beside it, pulse and keepRecording, watch the clock and record results.
type run struct {
	exec  *Executor
	task  Task
	share *share

	life     context.Context    //nolint:containedctx // ended by abandon
	abandon  context.CancelFunc // drops the run at once
	feeding  context.Context    //nolint:containedctx // ended by the deadline, stop and abandon
	stopFeed context.CancelFunc

	mu       sync.Mutex
	tracker  *tracker
	matched  int64
	inFlight int     // attempts that the publisher has not settled
	asked    Outcome // what stop asked for
	expired  bool
	outcome  Outcome
	trouble  string
	dirty    bool   // there is progress nobody has been told of
	told     uint64 // the tracker's head when somebody was last told

	recording sync.Mutex    // held by who records results
	results   fleet.Results // where they are kept; nil for nowhere
	safe      Progress      // what has been recorded
	toRecord  chan struct{} // has room for one signal: there is something to tell of

	dead    atomic.Bool   // nobody waits for results any more
	settled chan struct{} // has room for one signal: there is room, or nothing is left
	pages   chan page     // from readAhead

	// Of loop alone:
	at      string   // the last name that was given to the tracker
	page    page     // devices not yet given to the tracker
	retry   []uint64 // devices to be served again at retryAt
	retryAt time.Time
	backoff wait.Backoff
}

func newRun(e *Executor, task Task) *run {
	r := &run{
		exec: e, task: task, share: e.window.join(), matched: task.Matched,
		tracker: newTracker(e.opts.ResendLimit, task.After, task.Succeeded, task.Failed, task.Failures),
		settled: make(chan struct{}, 1), toRecord: make(chan struct{}, 1), pages: make(chan page), at: task.After,
	}
	r.backoff = newBackoff()
	life, cancel := context.WithCancel(e.ctx)
	r.life = life
	r.abandon = func() {
		r.dead.Store(true)
		cancel()
	}
	r.feeding, r.stopFeed = context.WithCancel(life)
	return r
}

// loop is the run from beginning to end.
func (r *run) loop() {
	defer r.stopFeed()
	if !r.exec.opts.Clock.Now().Before(r.task.Deadline) {
		r.expire() // pulse would do it too, but perhaps after the first messages
	}
	var beside sync.WaitGroup
	fed := make(chan struct{})
	beside.Go(r.pulse)
	beside.Go(func() { r.keepRecording(fed) })

	served := r.prepare() && r.feed()
	outcome := r.conclude(served)

	r.stopFeed()
	close(fed)
	beside.Wait()
	if outcome == OutcomeNone || !r.record(r.life) {
		return // abandoned, or the process is ending
	}
	r.mu.Lock()
	r.outcome = outcome
	r.trouble = ""
	if outcome == OutcomeServed || outcome == OutcomeExpired {
		r.matched = r.tracker.succeeded + r.tracker.failed
	}
	r.mu.Unlock()
	r.exec.notify(r.task.NamespacedName)
}

// prepare waits until the fleet store can be relied on, and counts the devices.
func (r *run) prepare() bool {
	return r.persist("reading the devices", func(ctx context.Context) error {
		if err := r.exec.store.Sync(ctx, r.task.Product.Namespace); err != nil {
			return err
		}
		if err := r.openResults(ctx); err != nil {
			return err
		}
		if r.task.Matched > 0 {
			return nil // resumed: counted when it started
		}
		n, err := r.exec.store.Count(ctx, r.query(""))
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.matched, r.dirty = r.tracker.succeeded+r.tracker.failed+n, true
		r.mu.Unlock()
		return nil
	})
}

// feed serves devices until every one has its result (true), or feeding has
// ended (false).
func (r *run) feed() bool {
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() { r.readAhead(r.task.After) })
	for r.feeding.Err() == nil {
		switch {
		case len(r.retry) > 0 && !r.exec.opts.Clock.Now().Before(r.retryAt):
			r.tryAgain()
		case r.takeIn():
		case r.allServed():
			return true
		default:
			r.waitForWork()
		}
	}
	return false
}

// takeIn serves the next devices of the page, or says that there are none or no room.
func (r *run) takeIn() bool {
	r.mu.Lock()
	n := min(r.tracker.room(), len(r.page.names), feedBatch)
	if n == 0 {
		r.mu.Unlock()
		return false
	}
	names, updates := r.page.take(n)
	batch := make([]uint64, n)
	for i, name := range names {
		batch[i] = r.tracker.add(name)
	}
	r.at = names[n-1]
	r.mu.Unlock()
	if r.task.Publish != nil {
		r.publishMessages(batch, names)
	} else {
		r.sendDeltas(batch, names, updates)
	}
	return true
}

// allServed reports whether every device has its result.
func (r *run) allServed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.page.last && len(r.page.names) == 0 && r.tracker.open() == 0
}

// waitForWork waits until results have made room, there is a page where the last one has
// been taken in, a retry is due, or feeding ends.
func (r *run) waitForWork() {
	var due <-chan time.Time
	if len(r.retry) > 0 {
		timer := r.exec.opts.Clock.NewTimer(r.retryAt.Sub(r.exec.opts.Clock.Now()))
		defer timer.Stop()
		due = timer.C()
	}
	var pages chan page
	if len(r.page.names) == 0 && !r.page.last {
		pages = r.pages
	}
	select {
	case <-r.settled:
	case r.page = <-pages:
	case <-due:
	case <-r.feeding.Done():
	}
}

// publishMessages sends the task's message to these devices.
func (r *run) publishMessages(batch []uint64, names []string) {
	prefix, suffix := r.task.Product.ProductID+"/", "/"+r.task.Publish.Topic
	deliveries := make([]*delivery, len(batch))
	for i, seq := range batch {
		deliveries[i] = &delivery{run: r, seq: seq, topic: prefix + names[i] + suffix, payload: r.task.Publish.Payload}
	}
	r.publish(deliveries)
}

// sendDeltas sends each of these devices the delta of its update. A device without one
// has succeeded at once: its shadow is stored, and there is nothing to tell it.
func (r *run) sendDeltas(batch []uint64, names []string, updates []fleet.DesiredResult) {
	var deliveries []*delivery
	var passing error
	for i, u := range updates {
		switch verdict, reason, message := judge(u.Err); {
		case verdict == pending:
			r.retry, passing = append(r.retry, batch[i]), u.Err
		case verdict == succeeded && len(u.Delta) > 0:
			topic := shadow.ResultTopic(r.task.Product.ProductID, names[i])
			deliveries = append(deliveries, &delivery{run: r, seq: batch[i], topic: topic, payload: u.Delta})
		default:
			r.settle(batch[i], verdict, reason, message)
		}
	}
	if passing != nil {
		r.retryAt = r.exec.opts.Clock.Now().Add(r.backoff.Step())
		r.report("updating shadows", passing)
	}
	r.publish(deliveries)
}

// tryAgain updates the shadows that could not be updated before.
func (r *run) tryAgain() {
	batch := r.retry
	r.retry = nil
	names := make([]string, len(batch))
	r.mu.Lock()
	for i, seq := range batch {
		names[i] = r.tracker.name(seq)
	}
	r.mu.Unlock()
	updates := r.exec.store.ApplyDesired(r.feeding, r.task.Product, r.update(r.exec.opts.Clock.Now()), names)
	r.sendDeltas(batch, names, updates)
	if len(r.retry) == 0 {
		r.backoff = newBackoff()
		r.report("", nil)
	}
}

// publish sends these messages as the window allows. Those that are not sent when
// feeding ends stay pending.
func (r *run) publish(deliveries []*delivery) {
	for len(deliveries) > 0 {
		n, err := r.share.acquire(r.feeding, len(deliveries))
		if err != nil {
			return
		}
		r.mu.Lock()
		r.inFlight += n
		r.mu.Unlock()
		for i, d := range deliveries[:n] {
			if err := r.exec.publisher.Publish(r.feeding, d); err != nil {
				r.unsent(n - i)
				return
			}
		}
		deliveries = deliveries[n:]
	}
}

// unsent gives places of the window back that no message has used.
func (r *run) unsent(n int) {
	r.share.release(n)
	r.mu.Lock()
	r.inFlight -= n
	r.mu.Unlock()
	r.signal()
}

// landed is called when the publisher has settled a message.
func (r *run) landed(seq uint64, res result, reason, message string) {
	r.share.release(1)
	r.mu.Lock()
	r.inFlight--
	tell := res != pending && r.take(seq, res, reason, message)
	wake := r.wanted()
	r.mu.Unlock()
	if wake {
		r.signal()
	}
	if tell {
		r.checkpoint()
	}
}

// settle takes the result of a device that needs no message.
func (r *run) settle(seq uint64, res result, reason, message string) {
	r.mu.Lock()
	tell := r.take(seq, res, reason, message)
	r.mu.Unlock()
	if tell {
		r.checkpoint()
	}
}

// take settles a device. It reports whether so much has come since the last time
// that a checkpoint should be written now, before the run has to wait for it.
func (r *run) take(seq uint64, res result, reason, message string) (tell bool) {
	if !r.tracker.settle(seq, res, reason, message) {
		return false
	}
	r.dirty = true
	// A record is cheap, and what is not recorded takes room. One is made at a time, so
	// they are as large as what comes during the last.
	enough := uint64(len(r.tracker.ring)+1) / 2
	if r.results != nil {
		enough = uint64(len(r.tracker.ring)+15) / 16
	}
	if r.tracker.head-r.told < enough {
		return false
	}
	r.told, r.dirty = r.tracker.head, false
	return true
}

// saved tells the tracker that a checkpoint has been written to the status.
func (r *run) saved(mark uint64) {
	r.mu.Lock()
	r.tracker.save(mark) // changes nothing where that is recorded already
	wake := r.wanted()
	r.mu.Unlock()
	if wake {
		r.signal()
	}
}

// wanted reports whether there is enough for loop to do that it is worth waking.
func (r *run) wanted() bool {
	return r.inFlight == 0 || r.tracker.room() >= max(1, len(r.tracker.ring)/16)
}

func (r *run) signal() {
	select {
	case r.settled <- struct{}{}:
	default:
	}
}

// pulse tells of progress about once a second, and ends feeding at the deadline.
func (r *run) pulse() {
	clk := r.exec.opts.Clock
	deadline := clk.NewTimer(max(r.task.Deadline.Sub(clk.Now()), 0))
	defer deadline.Stop()
	tick := clk.NewTicker(r.exec.opts.CheckpointInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C():
			if r.takeNews() {
				r.checkpoint()
				if r.keptIn() != nil {
					r.exec.notify(r.task.NamespacedName) // of what has been recorded so far
				}
			}
		case <-deadline.C():
			r.expire()
		case <-r.feeding.Done():
			return
		}
	}
}

func (r *run) takeNews() bool {
	connected := r.exec.publisher.Connected()
	r.mu.Lock()
	defer r.mu.Unlock()
	const lost = "there is no connection to the MQTT broker"
	switch {
	case !connected && r.trouble == "":
		r.trouble, r.dirty = lost, true
	case connected && r.trouble == lost:
		r.trouble, r.dirty = "", true
	}
	news := r.dirty
	r.dirty, r.told = false, r.tracker.head
	return news
}

// progress is what the reconciler may write.
func (r *run) progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.results == nil {
		return r.snapshotLocked()
	}
	p := r.safe
	p.Matched = max(r.matched, p.Succeeded+p.Failed)
	p.Outcome, p.Trouble = r.outcome, r.trouble
	return p
}

// snapshotLocked is how far the run has come.
func (r *run) snapshotLocked() Progress {
	return Progress{
		Cursor: r.tracker.cursor, Mark: r.tracker.head, Matched: max(r.matched, r.tracker.succeeded+r.tracker.failed),
		Succeeded: r.tracker.succeeded, Failed: r.tracker.failed,
		Failures: append([]v1alpha1.DeviceFailure(nil), r.tracker.failures...),
		Outcome:  r.outcome, Trouble: r.trouble,
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
		if ctx.Err() != nil {
			return false
		}
		r.report(doing, err)
		timer := r.exec.opts.Clock.NewTimer(backoff.Step())
		select {
		case <-timer.C():
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return false
}

// report says what holds the run up, or with a nil error that nothing does.
func (r *run) report(doing string, err error) {
	trouble := ""
	if err != nil {
		trouble = doing + ": " + err.Error()
		r.exec.opts.Log.Info("Task is held up, will try again", "task", r.task.NamespacedName, "trouble", trouble)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trouble != trouble {
		r.trouble, r.dirty = trouble, true
	}
}

func newBackoff() wait.Backoff {
	return wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 50, Cap: 5 * time.Second}
}

func (r *run) query(after string) fleet.Query {
	if after == "" {
		after = r.task.After
	}
	return fleet.Query{Product: r.task.Product, Filter: r.task.Filter, After: after, Until: r.task.Until}
}

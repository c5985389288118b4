package executor

import (
	"sync"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// account is what a run has counted and what has been asked of it: all that several
// goroutines of a run share. Only its methods lock; none of them calls anybody else.
type account struct {
	mu       sync.Mutex
	tracker  *tracker
	matched  int64
	inFlight int     // attempts that the publisher has not settled
	asked    Outcome // what stop asked for
	expired  bool
	outcome  Outcome
	trouble  string
	dirty    bool // there is progress nobody has been told of

	// recorded is whether results are recorded; then only what safe holds counts, which
	// has been.
	recorded bool
	safe     Progress
}

func newAccount(task Task, resendLimit int) *account {
	return &account{
		matched: task.Matched,
		tracker: newTracker(resendLimit, task.After, task.Succeeded, task.Failed, task.Failures),
	}
}

// resume counts what has been recorded behind the checkpoint, and goes on after it. From
// now on what this run counts is recorded too. No device has been admitted before.
func (a *account) resume(totals fleet.ResultTotals) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tracker.resume(totals)
	a.recorded, a.safe = true, a.snapshot()
}

// isRecorded reports whether results are recorded.
func (a *account) isRecorded() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.recorded
}

// match notes that this many devices are to be served beside those that are counted.
func (a *account) match(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.matched, a.dirty = a.tracker.succeeded+a.tracker.failed+n, true
}

// admit takes in the first of these devices, at most most and as many as there is room
// for, and returns their numbers.
func (a *account) admit(names []string, most int) []uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := min(a.tracker.room(), len(names), most)
	if n == 0 {
		return nil
	}
	batch := make([]uint64, n)
	for i, name := range names[:n] {
		batch[i] = a.tracker.add(name)
	}
	return batch
}

// names returns the names of devices that have no result yet.
func (a *account) names(batch []uint64) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	names := make([]string, len(batch))
	for i, seq := range batch {
		names[i] = a.tracker.name(seq)
	}
	return names
}

// isEmpty reports whether every device that was admitted has its result.
func (a *account) isEmpty() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tracker.open() == 0
}

// launch notes that n messages are on their way, or with a negative n that they are not.
func (a *account) launch(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inFlight += n
}

// onTheWay is how many messages are on their way.
func (a *account) onTheWay() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inFlight
}

// land takes the result of a message. It reports whether a checkpoint should be written,
// and whether there is enough to do that feeding is worth waking.
func (a *account) land(seq uint64, res result, reason, message string) (tell, wake bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inFlight--
	tell = res != pending && a.take(seq, res, reason, message)
	return tell, a.wanted()
}

// settle takes the result of a device that needs no message. It reports whether a
// checkpoint should be written.
func (a *account) settle(seq uint64, res result, reason, message string) (tell bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.take(seq, res, reason, message)
}

// take needs the lock. It settles a device, and reports whether so much has come since
// the last time that a checkpoint should be written now, before the run has to wait for
// it.
func (a *account) take(seq uint64, res result, reason, message string) (tell bool) {
	if !a.tracker.settle(seq, res, reason, message) {
		return false
	}
	a.dirty = true
	// A record is cheap, and what is not recorded takes room. One is made at a time, so
	// they are as large as what comes during the last.
	enough := uint64(len(a.tracker.ring)+1) / 2
	if a.recorded {
		enough = uint64(len(a.tracker.ring)+15) / 16
	}
	if a.tracker.untold() < enough {
		return false
	}
	a.tracker.tell()
	a.dirty = false
	return true
}

// wanted needs the lock. It reports whether there is enough for feeding to do that it is
// worth waking.
func (a *account) wanted() bool {
	return a.inFlight == 0 || a.tracker.room() >= max(1, len(a.tracker.ring)/16)
}

// save notes that the checkpoint with this mark has been written to the status, which
// changes nothing where that is recorded already. It reports whether feeding is worth
// waking.
func (a *account) save(mark uint64) (wake bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tracker.save(mark)
	return a.wanted()
}

// unrecorded returns the results that the watermark has passed and that are not recorded,
// and what may be told once they are.
func (a *account) unrecorded() (part fleet.ResultRange, next Progress) {
	a.mu.Lock()
	defer a.mu.Unlock()
	next = a.snapshot()
	part = a.tracker.since(a.safe.Mark)
	part.After, part.Upto = a.safe.Cursor, next.Cursor
	return part, next
}

// record notes that this much has been recorded. It reports whether feeding is worth
// waking.
func (a *account) record(next Progress) (wake bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.safe = next
	a.tracker.save(next.Mark)
	return a.wanted()
}

const lostBroker = "there is no connection to the MQTT broker"

// news reports whether there is progress that nobody has been told of; from now on
// somebody has. That the broker is lost, or found again, is news.
func (a *account) news(connected bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !connected && a.trouble == "":
		a.trouble, a.dirty = lostBroker, true
	case connected && a.trouble == lostBroker:
		a.trouble, a.dirty = "", true
	}
	news := a.dirty
	a.dirty = false
	a.tracker.tell()
	return news
}

// report notes what holds the run up; "" for nothing.
func (a *account) report(trouble string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.trouble != trouble {
		a.trouble, a.dirty = trouble, true
	}
}

// progress is what may be written to the status.
func (a *account) progress() Progress {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.recorded {
		return a.snapshot()
	}
	p := a.safe
	p.Matched = max(a.matched, p.Succeeded+p.Failed)
	p.Outcome, p.Trouble = a.outcome, a.trouble
	return p
}

// snapshot needs the lock. It is how far the run has come.
func (a *account) snapshot() Progress {
	return Progress{
		Cursor: a.tracker.cursor, Mark: a.tracker.head, Matched: max(a.matched, a.tracker.succeeded+a.tracker.failed),
		Succeeded: a.tracker.succeeded, Failed: a.tracker.failed,
		Failures: append([]v1alpha1.DeviceFailure(nil), a.tracker.failures...),
		Outcome:  a.outcome, Trouble: a.trouble,
	}
}

// expire gives up every device that has no result. It reports false where something else
// has ended the run before.
func (a *account) expire() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked != OutcomeNone {
		return false
	}
	a.expired = true
	a.tracker.settleRest(failed, v1alpha1.ReasonDeadlineExceeded, deadlineMessage)
	return true
}

// ask notes that the run is to end with this outcome, Cancelled or Suspended. It reports
// false where the deadline has ended it before.
func (a *account) ask(outcome Outcome) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.expired {
		return false
	}
	if a.asked == OutcomeNone || outcome == OutcomeCancelled {
		a.asked = outcome
	}
	return true
}

// ending returns what has ended the run, if something has.
func (a *account) ending() (expired bool, asked Outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.expired, a.asked
}

// leave counts for a run that is cancelled all results above the watermark too. It
// returns what was asked for.
func (a *account) leave() Outcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked == OutcomeCancelled {
		a.tracker.close()
	}
	return a.asked
}

// finish notes the outcome of the run.
func (a *account) finish(outcome Outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outcome, a.trouble = outcome, ""
	if outcome == OutcomeServed || outcome == OutcomeExpired {
		a.matched = a.tracker.succeeded + a.tracker.failed
	}
}

// failRest gives every device that was admitted and has no result that of the deadline.
func (a *account) failRest() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tracker.settleRest(failed, v1alpha1.ReasonDeadlineExceeded, deadlineMessage)
}

// failUnreached counts devices as failed that had not been admitted at the deadline: some
// by name, in their order, and others.
func (a *account) failUnreached(names []string, others int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range names {
		a.tracker.count(&tracked{name: name, result: failed, reason: v1alpha1.ReasonDeadlineExceeded, message: deadlineMessage})
	}
	a.tracker.failed += others
}

// failUnreachedRecorded is failUnreached for devices whose results have been recorded.
func (a *account) failUnreachedRecorded(names []string) {
	a.failUnreached(names, 0)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.safe = a.snapshot()
}

// failUnnamed counts as failed what has no result of the devices that matched when the
// task began.
func (a *account) failUnnamed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tracker.failed += max(0, a.matched-a.tracker.succeeded-a.tracker.failed)
	a.safe = a.snapshot()
}

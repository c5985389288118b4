package executor

import (
	"sync"
	"time"

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
	broken   string // what a panic said; "" for none
	outcome  Outcome
	lacking  string // what could not be done before the run had to end
	trouble  string // what holds the run up
	outside  string // what holds it up at the broker, as last told to news
	dirty    bool   // there is progress nobody has been told of

	// recorded is whether results are recorded; then only what safe holds counts, which
	// has been. Before that is known, safe is what the run began with.
	recorded bool
	safe     Progress
}

func newAccount(task Task, resendLimit int) *account {
	// Those that are pending are on their way twice at most, whatever the limit is now.
	a := &account{
		matched: task.Matched,
		tracker: newTracker(max(resendLimit, len(task.Pending)), task.After, task.Succeeded, task.Failed, task.Failures),
	}
	a.tracker.readmit(task.Pending)
	a.safe = a.snapshot()
	return a
}

// resume counts what has been recorded behind the checkpoint, and goes on after it. From
// now on what this run counts is recorded too. No device has been admitted before but those
// that were pending, and where the deadline was first they have failed already. That is not
// recorded, so what is safe is what the run began with and what was recorded, no more.
func (a *account) resume(totals fleet.ResultTotals) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tracker.resume(totals)
	safe := newTracker(0, a.safe.Cursor, a.safe.Succeeded, a.safe.Failed, a.safe.Failures)
	safe.resume(totals)
	a.safe.Cursor, a.safe.Succeeded, a.safe.Failed, a.safe.Failures = safe.cursor, safe.succeeded, safe.failed, safe.failures
	a.recorded = true
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

// launch notes that messages are on their way now.
func (a *account) launch(messages []*delivery, now time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inFlight += len(messages)
	for _, d := range messages {
		a.tracker.at(d.seq).sent = max(now, 1)
	}
}

// recall notes that messages are not on their way after all. It returns how many of them had
// been found overdue.
func (a *account) recall(messages []*delivery) (late int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inFlight -= len(messages)
	for _, d := range messages {
		if a.tracker.landed(d.seq) {
			late++
		}
	}
	return late
}

// overdue finds messages on their way that were sent by then, and returns how many it had not
// found before.
func (a *account) overdue(then time.Duration) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inFlight == 0 {
		return 0
	}
	return a.tracker.overdue(then)
}

// onTheWay is how many messages are on their way.
func (a *account) onTheWay() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inFlight
}

// landing is what is to be done when a message has landed.
type landing struct {
	late bool // the message was overdue
	tell bool // a checkpoint should be written
	wake bool // there is enough to do that feeding is worth waking
}

// land takes the result of a message.
func (a *account) land(seq uint64, res result, reason, message string) (then landing) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inFlight--
	then.late = a.tracker.landed(seq)
	then.tell = res != pending && a.take(seq, res, reason, message)
	then.wake = a.wanted()
	return then
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
	if int(a.tracker.untold()) < a.enough() { //nolint:gosec // at most the ring
		return false
	}
	a.tracker.tell()
	a.dirty = false
	return true
}

// enough is how many devices a checkpoint is worth. A record is cheap, and what is not
// recorded takes room. One is made at a time, so they are as large as what comes during the
// last.
func (a *account) enough() int {
	if a.recorded {
		return (len(a.tracker.ring) + 15) / 16
	}
	return (len(a.tracker.ring) + 1) / 2
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
func (a *account) unrecorded() (parts []fleet.ResultRange, next Progress) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tracker.since(a.safe.Mark, a.safe.Cursor), a.snapshot()
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

// news reports whether there is progress that nobody has been told of; from now on
// somebody has. What holds the run up from outside, at the broker, is news when it changes,
// unless something else holds the run up.
func (a *account) news(outside string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if (a.trouble == "" || a.trouble == a.outside) && a.trouble != outside {
		a.trouble, a.dirty = outside, true
	}
	a.outside = outside
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

// isUntroubled reports whether nothing holds the run up that is known.
func (a *account) isUntroubled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.trouble == "" || a.trouble == a.outside
}

// progress is what may be written to the status.
func (a *account) progress() Progress {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.recorded {
		p := a.snapshot()
		p.Waits = a.outcome == OutcomeNone && int(a.tracker.head-a.tracker.saved) >= a.enough() //nolint:gosec // at most the ring
		return p
	}
	p := a.safe
	p.Matched = max(a.matched, p.Succeeded+p.Failed)
	p.Outcome, p.Trouble, p.Lacking = a.outcome, a.trouble, a.lacking
	return p
}

// snapshot needs the lock. It is how far the run has come.
func (a *account) snapshot() Progress {
	return Progress{
		Cursor: a.tracker.cursor, Mark: a.tracker.head, Matched: max(a.matched, a.tracker.succeeded+a.tracker.failed),
		Succeeded: a.tracker.succeeded, Failed: a.tracker.failed,
		Failures: append([]v1alpha1.DeviceFailure(nil), a.tracker.failures...),
		Pending:  a.tracker.pending(),
		Outcome:  a.outcome, Trouble: a.trouble, Lacking: a.lacking,
	}
}

// expire gives up every device that has no result. It reports false where the run has been
// cancelled before.
func (a *account) expire() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked == OutcomeCancelled || a.expired {
		return false
	}
	// A suspended run that cannot record what it has ends here too.
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

func (a *account) isExpired() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.expired
}

// leave counts what has a result above the watermark too: for a run that is cancelled all of
// it, for one that is suspended as far as a checkpoint can name the devices that have none.
// It returns what was asked for.
func (a *account) leave() Outcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked == OutcomeCancelled {
		a.tracker.close()
	} else {
		a.tracker.park(MaxPending)
	}
	return a.asked
}

// surrender counts all that is known, recorded or not, for a run that must end although the
// store is away. Where rest is set, the rest of what matched has failed.
func (a *account) surrender(rest bool, lacking string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tracker.close()
	if rest {
		a.tracker.failed += max(0, a.matched-a.tracker.succeeded-a.tracker.failed)
	}
	if a.lacking = lacking; lacking == "" {
		a.lacking = a.trouble
	}
	a.recorded = false // what is not recorded counts too
}

// ruin notes what a panic said.
func (a *account) ruin(said string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken == "" {
		a.broken = said
	}
}

// ruined returns what a panic said; "" for none.
func (a *account) ruined() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.broken
}

// finish notes the outcome of the run.
func (a *account) finish(outcome Outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outcome, a.trouble = outcome, ""
	if outcome == OutcomeServed || outcome == OutcomeExpired || outcome == OutcomeBroken {
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
	if a.recorded {
		a.safe = a.snapshot() // they have been recorded
	}
}

// failUnnamed counts as failed what has no result of the devices that matched when the
// task began.
func (a *account) failUnnamed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tracker.failed += max(0, a.matched-a.tracker.succeeded-a.tracker.failed)
	a.safe = a.snapshot()
}

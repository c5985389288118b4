package service

import (
	"context"
	"errors"
	"math"
	"time"
)

const (
	// heldUpLimit is how many messages may be done and not acknowledged, because one before
	// them is not done, before those are given up that take long. A broker that sends 1,000
	// before it waits for acknowledgements then still has room for as many.
	heldUpLimit = 500
	// tickEvery is how often it is looked at what takes long.
	tickEvery = 250 * time.Millisecond
	// probeEvery is the pause between two looks at a store that is away.
	probeEvery = 2 * time.Second
	// probeTimeout bounds such a look.
	probeTimeout = 5 * time.Second
	// recovery is after which time without slow calls a product has one turn more.
	recovery = 500 * time.Millisecond
	// recovered is when it has all of them back.
	recovered = 10 * time.Second
	// troubleForgotten is for how long a product in trouble of which nothing comes is remembered.
	troubleForgotten = time.Minute
)

// Why a message is given up before its time.
var (
	errStoreAway = errors.New("the store of its product has failed for too long; it is tried again from time to time")
	errHeldUp    = errors.New("its store takes long, and the acknowledgements of many other messages waited for this one")
)

// trouble is what is known of a product's store.
type trouble struct {
	failing   time.Time // since when no call has succeeded; zero if the last one has
	succeeded time.Time // the last call that did
	slow      bool      // a call under way takes long
	lastSlow  time.Time
	away      bool // it has failed for so long that devices are told at once
	told      bool // away, in the log
	lastError error
	probing   bool
	probed    time.Time // when the last probe ended
	refused   time.Time // the last message refused because it is away
}

func (t *trouble) inTrouble() bool { return t.slow || !t.failing.IsZero() }

// untroubled says that there is nothing to remember.
func (t *trouble) untroubled() bool {
	return !t.inTrouble() && t.lastSlow.IsZero() && !t.probing && !t.told
}

// turns is how many the product may have. After trouble it gets them back one by one:
// otherwise a store that hangs, answers and hangs again would each time take all that the
// product may have.
func (t *trouble) turns(now time.Time) int {
	switch {
	case t.inTrouble():
		return troubledTurns
	case t.lastSlow.IsZero():
		return math.MaxInt
	default:
		return troubledTurns + int(now.Sub(t.lastSlow)/recovery)
	}
}

// begin starts the work on a message, which ends with ctx.
func (q *queue) begin(ctx context.Context, l *line, j *job) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	q.mu.Lock()
	defer q.mu.Unlock()
	j.cancel = cancel
	q.judgeLocked(l, j, q.clock.Now())
	return ctx, cancel
}

// judgeLocked gives a message up that has no prospect, or that holds up too many others.
func (q *queue) judgeLocked(l *line, j *job, now time.Time) {
	switch p := l.product; {
	case j.cancel == nil:
	case p.away:
		j.cancel(errStoreAway)
	case !q.pressed:
	case p.inTrouble() && now.Sub(j.arrived) >= q.slowAfter, !j.tried.IsZero() && now.Sub(j.tried) >= q.slowAfter:
		j.cancel(errHeldUp)
	}
}

// calling notes that a call of a line's store begins.
func (q *queue) calling(l *line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l.attempt = q.clock.Now()
	if j := l.jobs[0]; j.tried.IsZero() {
		j.tried = l.attempt
	}
}

// called notes how the call has ended: err is not nil if it has failed in a way that may pass.
func (q *queue) called(l *line, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	began, p := l.attempt, l.product
	l.attempt = time.Time{}
	if err != nil {
		// What other calls say counts too: one device's shadow may be locked.
		if began.Before(p.succeeded) {
			began = p.succeeded
		}
		if p.failing.IsZero() || began.Before(p.failing) {
			p.failing = began
		}
		p.lastError = err
		return
	}
	q.succeededLocked(p)
}

func (q *queue) succeededLocked(p *productState) {
	p.failing, p.away, p.succeeded = time.Time{}, false, q.clock.Now()
}

// news is that a product's store is away, or is back.
type news struct {
	productID, namespace string
	away                 bool
	err                  error
}

// tick looks at what takes long; heldUp is how many messages are done and wait for the
// acknowledgement of one before them.
func (q *queue) tick(heldUp int) []news {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.clock.Now()
	q.pressed = heldUp >= heldUpLimit
	for _, p := range q.products {
		p.slow = false
		if now.Sub(p.lastSlow) >= recovered {
			p.lastSlow = time.Time{}
		}
	}
	for _, l := range q.lines {
		if !l.attempt.IsZero() && now.Sub(l.attempt) >= q.slowAfter {
			l.product.slow, l.product.lastSlow = true, now
		}
	}
	var all []news
	for _, p := range q.products {
		p.away = !p.failing.IsZero() && now.Sub(p.failing) >= q.awayAfter
		if p.lines == 0 && !p.probing && p.inTrouble() && now.Sub(later(p.refused, p.failing)) >= troubleForgotten {
			p.failing, p.away = time.Time{}, false // the next message shows how it is
		}
		if p.away != p.told {
			p.told = p.away
			all = append(all, news{p.id, p.tenant.namespace, p.away, p.lastError})
		}
		q.forgetLocked(p)
	}
	for _, l := range q.lines {
		if len(l.jobs) > 0 {
			q.judgeLocked(l, l.jobs[0], now)
		}
	}
	for namespace, t := range q.tenants {
		if t.taken == 0 && t.running == 0 && now.Sub(t.heard) >= aloneAfter && !q.hasProductLocked(t) {
			delete(q.tenants, namespace)
		}
	}
	q.dispatchLocked() // some have their turns back
	q.roomLocked()     // whoever waits for room may be refused by now
	return all
}

func (q *queue) hasProductLocked(t *tenant) bool {
	for _, p := range q.products {
		if p.tenant == t {
			return true
		}
	}
	return false
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// mayProbe says whether the store of a product that is away should be looked at now, and
// that whoever asked does it.
func (q *queue) mayProbe(productID string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.products[productID]
	if p == nil || !p.away {
		return false
	}
	now := q.clock.Now()
	p.refused = now
	if p.probing || now.Sub(p.probed) < probeEvery || q.closed {
		return false
	}
	p.probing = true
	return true
}

// hasProbed tells what came out.
func (q *queue) hasProbed(productID string, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.products[productID]
	p.probing, p.probed = false, q.clock.Now()
	if err == nil {
		q.succeededLocked(p)
	} else {
		p.lastError = err
	}
}

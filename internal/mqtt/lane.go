package mqtt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// laneTurn is how long a lane keeps its place while others wait for theirs.
	laneTurn = time.Second
	// laneIdle is how long a lane with nothing to do keeps its connection.
	laneIdle = time.Second
	// lanePause follows a drop; it keeps a product full of refused messages from hammering the broker.
	lanePause = 5 * time.Millisecond
	// laneWindow is how many messages of a task a lane sends at once in the beginning.
	laneWindow = 64
	// probationEnd is how many messages must be acknowledged in a row after a rejection.
	probationEnd = 1000
	// maxTries is how many drops in a row a task may cost before the others of the lane have a turn.
	maxTries = 8
)

// lane takes the messages of one product apart from all others, over a connection of its own, after the broker has
// dropped a connection that had messages of the product in flight. It finds out which of them, if any, the broker
// drops connections for; see trial.
//
// The tasks of the product take turns. The lane sends the oldest messages of one in batches of a window, which shrinks
// to an eighth with each drop and doubles with each batch that was acknowledged: innocent messages are through after a
// few round trips, and in the end the culprit is alone.
//
// # Who uses a lane
//
// As long as a lane has suspects, what its product publishes goes through it as well, else it might bring down the
// shared connections one by one before the first verdict. When the last suspect has been acknowledged, the rest goes
// back to the shared queue. But after a rejection, and after a suspect that nobody waited for any longer, the product
// stays apart: until 1000 messages were acknowledged in a row and the time of its probation (Options.Probation) is
// over. That costs an innocent product nothing but a connection.
type lane struct {
	quarantine *quarantine
	pool       *Pool
	origin     origin
	wake       chan struct{}

	// Guarded by quarantine.mu.
	parts      map[any]*part
	order      []*part // the parts as they have their turns; the first is next
	suspects   int     // waiting, or in the batch that is being sent
	apartUntil time.Time
	clean      int // acknowledged since the last drop
	guilty     bool
	active     bool
	inLine     bool
	lastUsed   time.Time

	// For the lane's goroutine, of which there is one at a time.
	sender *sender
	fresh  bool // nothing but a round trip has happened on it
	pause  backoff
	trial  trial
}

// part is what waits of one task.
type part struct {
	task     any
	queue    []*item
	unsorted bool
	window   int
	tries    int  // drops in a row
	sending  bool // a batch of it is on its way
}

// add needs quarantine.mu.
func (l *lane) add(it *item) {
	p := l.part(it)
	if n := len(p.queue); n > 0 && p.queue[n-1].seq > it.seq {
		p.unsorted = true
	}
	p.queue = append(p.queue, it)
	l.lastUsed = l.pool.clock.Now()
	if l.active {
		notify(l.wake)
	} else if !l.inLine {
		l.quarantine.line(l)
	}
}

// part returns that of the message's task. It needs quarantine.mu.
func (l *lane) part(it *item) *part {
	p := l.parts[it.source.Task]
	if p == nil {
		p = &part{task: it.source.Task, window: laneWindow}
		l.parts[p.task] = p
		l.order = append(l.order, p)
	}
	return p
}

// items returns all that waits. It needs quarantine.mu.
func (l *lane) items() []*item {
	var items []*item
	for _, p := range l.order {
		items = append(items, p.queue...)
	}
	return items
}

// run is the lane's turn.
func (l *lane) run(ctx, connCtx context.Context) {
	q := l.quarantine
	began := l.pool.clock.Now()
	for ctx.Err() == nil && l.hasWork(ctx, began) {
		if !l.ready(ctx, connCtx) {
			continue
		}
		if p, batch := l.take(); len(batch) > 0 {
			l.send(ctx, p, batch)
		}
	}
	l.hangUp()
	q.mu.Lock()
	defer q.mu.Unlock()
	l.active = false
	q.active--
	// Whatever came after hasWork said no.
	if len(l.order) > 0 && q.lanes[l.origin] == l {
		q.line(l)
	}
	notify(q.work)
}

// hasWork waits for something to send for a while, and says no when the lane is to give up its place.
func (l *lane) hasWork(ctx context.Context, began time.Time) bool {
	q, clk := l.quarantine, l.pool.clock
	for wait := true; ; wait = false {
		q.mu.Lock()
		if l.suspects == 0 && l.acquitted() {
			l.dissolve()
			q.mu.Unlock()
			return false
		}
		others := len(q.waiting) > 0
		work := len(l.order) > 0
		q.mu.Unlock()
		switch {
		case others && clk.Since(began) >= laneTurn:
			return false
		case work:
			return true
		case others || !wait:
			return false
		}
		timer := clk.NewTimer(laneIdle)
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-timer.C():
		}
		timer.Stop()
	}
}

// acquitted says whether the product need not be kept apart any longer. It needs quarantine.mu.
func (l *lane) acquitted() bool {
	return l.apartUntil.IsZero() || l.clean >= probationEnd && !l.pool.clock.Now().Before(l.apartUntil)
}

// keepApart begins the product's probation, or begins it anew. It needs quarantine.mu.
func (l *lane) keepApart() {
	l.apartUntil = l.pool.clock.Now().Add(l.pool.options.Probation)
	l.clean = 0
	l.setGuilty(true)
}

// setGuilty needs quarantine.mu.
func (l *lane) setGuilty(is bool) {
	if l.guilty == is {
		return
	}
	l.guilty = is
	of := l.quarantine.guilty
	if is {
		of[l.origin.tenant]++
	} else if of[l.origin.tenant]--; of[l.origin.tenant] == 0 {
		delete(of, l.origin.tenant)
	}
}

// dissolve ends the lane; its product is like all others again. It needs quarantine.mu.
func (l *lane) dissolve() {
	for _, it := range l.items() {
		l.pool.requeue(it)
	}
	l.parts, l.order = map[any]*part{}, nil
	l.quarantine.close(l)
}

// ready sees to a connection that serves, with one more look at the evidence when it is a new one.
func (l *lane) ready(ctx, connCtx context.Context) bool {
	p := l.pool
	if l.sender != nil && !l.sender.conn.isDead() && !p.renewalDue(l.sender) {
		return true
	}
	l.hangUp()
	s, err := p.connect(connCtx)
	if err == nil {
		if err = s.roundTrip(); err != nil {
			s.close()
		}
	}
	if err != nil {
		// The broker is not well: what happened just before says nothing about a message.
		l.trial.end()
		p.log.V(1).Info("Cannot connect to find out about messages", "reason", err.Error())
		p.sleep(ctx, l.pause.next())
		return false
	}
	l.pause = backoff{}
	l.sender, l.fresh = s, true
	accused := l.trial.accused
	if drop := l.trial.connected(p.witness()); drop != nil {
		l.reject(accused, drop)
	}
	return true
}

// reject settles a message as refused, unless it was swept up meanwhile, not being live any more.
func (l *lane) reject(accused *item, drop error) {
	if !l.remove(accused) {
		return
	}
	l.pool.metrics.rejected.Inc()
	l.pool.settle(accused, fmt.Errorf("%w: %d times in a row, the last time with: %w", ErrRejected, strikesToReject, drop))
}

// remove takes a message that waits, and was not acknowledged, out of the lane, and says whether it did wait.
func (l *lane) remove(it *item) bool {
	l.quarantine.mu.Lock()
	defer l.quarantine.mu.Unlock()
	p := l.parts[it.source.Task]
	if p == nil {
		return false
	}
	i := slices.Index(p.queue, it)
	if i < 0 {
		return false
	}
	p.queue = slices.Delete(p.queue, i, i+1)
	l.flee(it)
	l.endTurn(p)
	return true
}

// endTurn lets the others have their turn before a part, and forgets it where there is nothing of it. It needs
// quarantine.mu.
func (l *lane) endTurn(p *part) {
	p.tries = 0
	l.order = slices.DeleteFunc(l.order, func(other *part) bool { return other == p })
	if len(p.queue) == 0 && !p.sending {
		delete(l.parts, p.task)
	} else {
		l.order = append(l.order, p)
	}
}

// clear notes that a message leaves the lane. It needs quarantine.mu.
func (l *lane) clear(it *item) {
	if it.suspect {
		it.suspect = false
		l.suspects--
	}
}

// take removes the oldest messages of the part whose turn it is, up to its window.
func (l *lane) take() (*part, []*item) {
	l.quarantine.mu.Lock()
	if len(l.order) == 0 {
		l.quarantine.mu.Unlock()
		return nil, nil
	}
	p := l.order[0]
	if p.unsorted {
		slices.SortFunc(p.queue, func(a, b *item) int { return cmp.Compare(a.seq, b.seq) })
		p.unsorted = false
	}
	n := min(p.window, len(p.queue))
	batch := slices.Clone(p.queue[:n])
	p.queue = slices.Delete(p.queue, 0, n)
	p.sending = true
	l.quarantine.mu.Unlock()
	batch = slices.DeleteFunc(batch, func(it *item) bool { return !l.live(it) })
	for _, it := range batch {
		it.inBatch = true
	}
	if len(batch) == 0 {
		l.quarantine.mu.Lock()
		p.sending = false
		l.endTurn(p)
		l.quarantine.mu.Unlock()
	}
	return p, batch
}

// live settles a message that nobody waits for, and says whether it is to be kept.
func (l *lane) live(it *item) bool {
	if it.delivery.Live() {
		return true
	}
	l.quarantine.mu.Lock()
	l.flee(it)
	l.quarantine.mu.Unlock()
	l.pool.settle(it, ErrAbandoned)
	return false
}

// flee is clear for a message that leaves without its acknowledgement: a suspect leaves its product on probation, also
// without a verdict. Else tasks that are over before theirs would cost everybody a shared connection each. It needs
// quarantine.mu.
func (l *lane) flee(it *item) {
	if it.suspect {
		l.keepApart()
	}
	l.clear(it)
}

// drop settles a message that is not live, if it still waits.
func (l *lane) drop(it *item) {
	if l.remove(it) {
		l.pool.settle(it, ErrAbandoned)
	}
}

// send sends a batch and waits for what becomes of it.
func (l *lane) send(ctx context.Context, p *part, batch []*item) {
	s := l.sender
	alone := l.fresh && len(batch) == 1
	l.fresh = false
	if alone {
		l.trial.begin(batch[0], l.pool.witness())
	} else {
		l.trial.end()
	}
	rest := batch
	s.startFeed(func() *item {
		if len(rest) == 0 {
			return nil
		}
		it := rest[0]
		rest = rest[1:]
		return it
	}, func(*item) {})
	cause := s.wait(l)
	dropped := cause != nil && brokerDropped(cause)
	if errors.Is(cause, errAckTimeout) && len(s.unacked) > 0 {
		l.overdue(s.unacked[0])
	}
	back := l.putBack(p, batch, cause == nil, dropped)
	if cause == nil {
		l.trial.end()
		return
	}
	l.sender = nil
	if !dropped {
		l.trial.end()
		return
	}
	if alone && back == 1 {
		l.trial.dropped(cause)
	}
	pause := lanePause
	if l.trial.blind() {
		pause = reconnectMin // there is nothing to be found out before a shared connection is up
	}
	l.pool.sleep(ctx, pause)
}

// acked is called from wait, so by the lane's goroutine.
func (l *lane) acked(items []*item) {
	l.quarantine.mu.Lock()
	l.clean += len(items)
	for _, it := range items {
		it.inBatch = false
		l.clear(it)
	}
	l.quarantine.mu.Unlock()
	for _, it := range items {
		l.pool.settle(it, nil)
	}
}

func (l *lane) overdue(it *item) {
	it.inBatch = false
	l.quarantine.mu.Lock()
	l.clear(it)
	l.quarantine.mu.Unlock()
	l.pool.retryLater(it)
}

// putBack returns what has no result to the front of its part and says how much that is. It sets the part's window,
// and whose turn is next: that of the others, once the batch was acknowledged or the part has had its tries. Until then
// a culprit is sought without anything in between.
func (l *lane) putBack(p *part, batch []*item, acked, dropped bool) int {
	l.quarantine.mu.Lock()
	defer l.quarantine.mu.Unlock()
	var back []*item // the goroutine that sends may still look at batch, so that stays as it is
	for _, it := range batch {
		if !it.inBatch {
			continue
		}
		it.inBatch = false
		back = append(back, it)
		if dropped && !it.suspect {
			it.suspect = true
			l.suspects++
		}
	}
	p.queue, p.sending = slices.Concat(back, p.queue), false
	switch {
	case acked:
		p.window, p.tries = min(2*p.window, l.pool.options.Window), 0
	case dropped:
		l.clean = 0
		p.window = max(1, p.window/8)
		p.tries++
	}
	if p.tries == 0 || p.tries >= maxTries {
		l.endTurn(p)
	}
	return len(back)
}

// age takes their places in the window from messages that have waited for long.
func (l *lane) age(now time.Time) {
	l.quarantine.mu.Lock()
	defer l.quarantine.mu.Unlock()
	for _, it := range l.items() {
		if now.Sub(it.at) >= l.pool.options.AckTimeout {
			l.pool.freeSlot(it)
		}
	}
}

func (l *lane) hangUp() {
	if l.sender != nil {
		l.sender.close()
		l.sender = nil
	}
}

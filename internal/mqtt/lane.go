package mqtt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// maxActiveLanes bounds the connections of lanes; further lanes wait in line.
	maxActiveLanes = 8
	// laneTurn is how long a lane keeps its place while others wait in line.
	laneTurn = time.Second
	// laneIdle is how long a lane with nothing to do keeps its connection.
	laneIdle = time.Second
	// lanePause follows a drop; it keeps a source full of refused messages from hammering the broker.
	lanePause = 5 * time.Millisecond
	// laneWindow is how many messages a lane sends at once in the beginning.
	laneWindow = 64
	// strikesToReject is how often in a row the broker must drop a message that is alone.
	strikesToReject = 3
	// probationEnd is how many messages must be acknowledged in a row after a rejection.
	probationEnd = 1000
	// probationMemory is how long a source on probation is remembered without any message.
	probationMemory = 10 * time.Minute
)

// lane takes the messages of one source apart from all others, over a connection of its own, after the broker has
// dropped a connection that had messages of the source in flight. It finds out which of them, if any, the broker drops
// connections for. It sends the oldest ones in batches of a window that shrinks to an eighth with each drop and doubles
// with each batch that was acknowledged, so innocent messages are through after a few round trips.
//
// # Evidence for a rejection
//
// Brokers restart, fail over and lose their minds; none of that may condemn a message. A strike counts when
//
//  1. the connection is fresh and the broker has answered a round trip on it just before,
//  2. then this message was sent, alone, and the broker closed the connection before its PUBACK,
//  3. the very next try to connect succeeded, a round trip included, and
//  4. a shared connection was up when the message was first sent like this, and the broker has dropped none since.
//
// After three strikes without anything else in between the message is rejected. A try to connect that fails, or a
// drop of a shared connection, takes all strikes back. So a broker would have to go down and come back three times,
// each time within the moment between a round trip and a PUBACK, keep its other clients, and never be found closed. A
// message whose evidence stays unclear is kept and tried on.
//
// # Who uses a lane
//
// As long as a lane has suspects, what its source publishes goes through it as well, else it might bring down the
// shared connections one by one before the first verdict. When the last suspect has its result, the rest goes back to
// the shared queue; but after a rejection the source is on probation until 1000 messages were acknowledged in a row.
type lane struct {
	pool   *Pool
	source any
	wake   chan struct{}

	// Guarded by Pool.mu.
	queue     []*item
	unsorted  bool
	suspects  int // in queue or in the batch being sent
	probation bool
	active    bool
	inLine    bool
	lastUsed  time.Time

	// For the lane's goroutine, of which there is one at a time.
	session *session
	fresh   bool // nothing but a round trip has happened on session
	window  int
	clean   int // acknowledged since the last drop
	pause   backoff
	trial   trial
}

// trial is the evidence against the one message that is tried alone.
type trial struct {
	accused *item
	strikes int
	// pending: the last drop is a strike if the next connection is well.
	pending bool
	// drops is Pool.sharedDrops as it was when the accused was first sent.
	drops uint64
	// unwitnessed: no shared connection was up then, so none shows whether the broker drops others too.
	unwitnessed bool
	detail      error
}

// accuse moves what a dropped connection had in flight to the lanes of the sources.
func (p *Pool) accuse(items []*item) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, it := range items {
		l := p.lanes[it.source]
		if l == nil {
			l = &lane{pool: p, source: it.source, wake: make(chan struct{}, 1), window: laneWindow}
			p.lanes[it.source] = l
			p.laneCount.Store(int32(len(p.lanes))) //nolint:gosec // at most the window
		}
		it.suspect = true
		l.suspects++
		l.add(it)
	}
}

// divert gives a message to the lane of its source if there is one.
func (p *Pool) divert(it *item) bool {
	if p.laneCount.Load() == 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.lanes[it.source]
	if l == nil {
		return false
	}
	l.add(it)
	return true
}

// add needs Pool.mu.
func (l *lane) add(it *item) {
	if n := len(l.queue); n > 0 && l.queue[n-1].seq > it.seq {
		l.unsorted = true
	}
	l.queue = append(l.queue, it)
	l.lastUsed = l.pool.clock.Now()
	if l.active {
		notify(l.wake)
	} else if !l.inLine {
		l.inLine = true
		l.pool.line = append(l.pool.line, l)
		notify(l.pool.laneWork)
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// runLanes starts lanes as places become free.
func (p *Pool) runLanes(ctx, connCtx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.laneWork:
		}
		p.mu.Lock()
		for p.active < maxActiveLanes && len(p.line) > 0 {
			l := p.line[0]
			p.line = slices.Delete(p.line, 0, 1)
			l.inLine, l.active = false, true
			p.active++
			p.running.Go(func() { l.run(ctx, connCtx) })
		}
		p.mu.Unlock()
	}
}

// run is the lane's turn.
func (l *lane) run(ctx, connCtx context.Context) {
	p := l.pool
	began := p.clock.Now()
	for ctx.Err() == nil && l.hasWork(ctx, began) {
		if !l.ready(ctx, connCtx) {
			continue
		}
		if batch := l.take(); len(batch) > 0 {
			l.send(ctx, batch)
		}
	}
	l.hangUp()
	p.mu.Lock()
	defer p.mu.Unlock()
	l.active = false
	p.active--
	// Whatever came after hasWork said no.
	if len(l.queue) > 0 && p.lanes[l.source] == l {
		l.inLine = true
		p.line = append(p.line, l)
	}
	notify(p.laneWork)
}

// hasWork waits for something to send for a while, and says no when the lane is to give up its place.
func (l *lane) hasWork(ctx context.Context, began time.Time) bool {
	p := l.pool
	for wait := true; ; wait = false {
		p.mu.Lock()
		if l.suspects == 0 && !l.probation {
			l.dissolve()
			p.mu.Unlock()
			return false
		}
		others := len(p.line) > 0
		work := len(l.queue) > 0
		p.mu.Unlock()
		switch {
		case others && p.clock.Since(began) >= laneTurn:
			return false
		case work:
			return true
		case others || !wait:
			return false
		}
		timer := p.clock.NewTimer(laneIdle)
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-timer.C():
		}
		timer.Stop()
	}
}

// dissolve ends the lane; its source is like all others again. It needs Pool.mu.
func (l *lane) dissolve() {
	p := l.pool
	for _, it := range l.queue {
		p.queue <- it
	}
	l.queue = nil
	delete(p.lanes, l.source)
	p.laneCount.Store(int32(len(p.lanes))) //nolint:gosec // at most the window
}

// ready sees to a connection that serves, with one more look at the evidence when it is a new one.
func (l *lane) ready(ctx, connCtx context.Context) bool {
	p := l.pool
	if l.session != nil && !l.session.conn.isDead() && !p.renewalDue(l.session) {
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
		l.trial = trial{}
		p.log.V(1).Info("Cannot connect to find out about messages", "reason", err.Error())
		p.sleep(ctx, l.pause.next())
		return false
	}
	l.pause = backoff{}
	l.session, l.fresh = s, true
	l.judge()
	return true
}

// judge counts a strike now that the broker has shown that it is well, and rejects after enough of them.
func (l *lane) judge() {
	p := l.pool
	if !l.trial.pending {
		return
	}
	l.trial.pending = false
	accused, detail := l.trial.accused, l.trial.detail
	p.mu.Lock()
	found := slices.Index(l.queue, accused) // it may have been swept up, not being live any more
	if found < 0 || l.trial.unwitnessed || p.sharedDisturbed(l.trial.drops) {
		p.mu.Unlock()
		l.trial = trial{}
		return
	}
	l.trial.strikes++
	if l.trial.strikes < strikesToReject {
		p.mu.Unlock()
		return
	}
	l.queue = slices.Delete(l.queue, found, found+1)
	l.clear(accused)
	l.probation = true
	p.mu.Unlock()
	l.trial = trial{}
	p.metrics.rejected.Inc()
	p.settle(accused, fmt.Errorf("%w: %d times in a row, the last time with: %w", ErrRejected, strikesToReject, detail))
}

// sharedDisturbed says whether a shared connection has ended since sharedDrops was before, also if whoever serves it
// has not noticed yet. It needs Pool.mu.
func (p *Pool) sharedDisturbed(before uint64) bool {
	for s := range p.shared {
		if s.conn.isDead() {
			return true
		}
	}
	return p.sharedDrops.Load() != before
}

// clear notes that a message leaves the lane. It needs Pool.mu.
func (l *lane) clear(it *item) {
	if it.suspect {
		it.suspect = false
		l.suspects--
	}
}

// take removes the oldest messages from the queue, up to the window.
func (l *lane) take() []*item {
	p := l.pool
	p.mu.Lock()
	if l.unsorted {
		slices.SortFunc(l.queue, func(a, b *item) int {
			if a.seq < b.seq {
				return -1
			}
			return 1
		})
		l.unsorted = false
	}
	n := min(l.window, len(l.queue))
	batch := slices.Clone(l.queue[:n])
	l.queue = slices.Delete(l.queue, 0, n)
	p.mu.Unlock()
	batch = slices.DeleteFunc(batch, func(it *item) bool { return !l.live(it) })
	for _, it := range batch {
		it.inBatch = true
	}
	return batch
}

func (l *lane) live(it *item) bool {
	if it.delivery.Live() {
		return true
	}
	l.pool.mu.Lock()
	l.clear(it)
	l.pool.mu.Unlock()
	l.pool.settle(it, ErrAbandoned)
	return false
}

// send sends a batch and waits for what becomes of it.
func (l *lane) send(ctx context.Context, batch []*item) {
	p := l.pool
	s := l.session
	alone := l.fresh && len(batch) == 1
	l.fresh = false
	if alone {
		l.try(batch[0])
	} else {
		l.trial = trial{}
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
	back := l.putBack(batch, dropped)
	if cause == nil {
		l.trial = trial{}
		l.window = min(2*l.window, p.options.Window)
		return
	}
	l.session = nil
	if !dropped {
		l.trial = trial{}
		return
	}
	l.clean = 0
	l.window = max(1, l.window/8)
	if alone && back == 1 {
		l.trial.pending, l.trial.detail = true, cause
	}
	pause := lanePause
	if l.trial.unwitnessed {
		pause = reconnectMin // there is nothing to be found out before a shared connection is up
	}
	p.sleep(ctx, pause)
}

// try begins the trial of a message, or goes on with it. It comes before the message is sent.
func (l *lane) try(accused *item) {
	if l.trial.accused == accused {
		return
	}
	p := l.pool
	l.trial = trial{accused: accused, drops: p.sharedDrops.Load(), unwitnessed: true}
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.shared {
		if !s.conn.isDead() {
			l.trial.unwitnessed = false
		}
	}
}

// acked is called from wait, so by the lane's goroutine.
func (l *lane) acked(items []*item) {
	l.clean += len(items)
	l.pool.mu.Lock()
	for _, it := range items {
		it.inBatch = false
		l.clear(it)
	}
	if l.clean >= probationEnd {
		l.probation = false
	}
	l.pool.mu.Unlock()
	for _, it := range items {
		l.pool.settle(it, nil)
	}
}

func (l *lane) overdue(it *item) {
	it.inBatch = false
	l.pool.mu.Lock()
	l.clear(it)
	l.pool.mu.Unlock()
	l.pool.retryLater(it)
}

// putBack returns what has no result to the front of the queue and says how much that is.
func (l *lane) putBack(batch []*item, dropped bool) int {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
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
	l.queue = slices.Concat(back, l.queue)
	return len(back)
}

func (l *lane) hangUp() {
	if l.session != nil {
		l.session.close()
		l.session = nil
	}
}

// sweepLanes settles waiting messages that are not live, and forgets lanes that were not used for long. Live is asked
// without the lock, for the caller may hold one of its own in Publish.
func (p *Pool) sweepLanes() {
	now := p.clock.Now()
	waiting := map[*lane][]*item{}
	p.mu.Lock()
	for source, l := range p.lanes {
		if len(l.queue) > 0 {
			waiting[l] = slices.Clone(l.queue)
		} else if !l.active && !l.inLine && now.Sub(l.lastUsed) >= probationMemory {
			delete(p.lanes, source)
		}
	}
	p.laneCount.Store(int32(len(p.lanes))) //nolint:gosec // at most the window, and sources on probation
	p.mu.Unlock()
	for l, queue := range waiting {
		for _, it := range queue {
			if !it.delivery.Live() {
				l.drop(it)
			}
		}
	}
}

// drop settles a message that is not live, if it still waits in the queue.
func (l *lane) drop(it *item) {
	l.pool.mu.Lock()
	i := slices.Index(l.queue, it)
	if i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
		l.clear(it)
	}
	l.pool.mu.Unlock()
	if i >= 0 {
		l.pool.settle(it, ErrAbandoned)
	}
}

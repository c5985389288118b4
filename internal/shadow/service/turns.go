package service

import (
	"context"
	"slices"
	"time"
)

// A line needs a turn for each call of a store. Turns go round among the products, and
// among the devices of each. A tenant has an eighth of them at the most, and a product
// whose store is slow or fails has two, so that what hangs leaves the rest to others. A
// line that waits to try again has none.
const troubledTurns = 2

// enter waits until the line has its turn. It returns the cause of the end of ctx.
func (q *queue) enter(ctx context.Context, l *line) error {
	q.mu.Lock()
	p := l.product
	p.waiting = append(p.waiting, l)
	if !p.inRing {
		p.inRing = true
		q.ring = append(q.ring, p)
	}
	q.dispatchLocked()
	q.mu.Unlock()
	select {
	case <-l.turn:
		if ctx.Err() == nil {
			return nil
		}
		q.leave(l)
	case <-ctx.Done():
		q.withdraw(l)
	}
	return context.Cause(ctx)
}

// withdraw ends the waiting of a line.
func (q *queue) withdraw(l *line) {
	q.mu.Lock()
	if i := slices.Index(l.product.waiting, l); i >= 0 {
		l.product.waiting = slices.Delete(l.product.waiting, i, i+1)
		q.mu.Unlock()
		return
	}
	q.mu.Unlock()
	<-l.turn // given at the same moment
	q.leave(l)
}

// leave gives the turn back, if the line has it.
func (q *queue) leave(l *line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !l.hasTurn {
		return
	}
	l.hasTurn = false
	q.running--
	l.product.running--
	l.product.tenant.running--
	q.dispatchLocked()
}

// dispatchLocked gives turns to lines that wait, as many as there are.
func (q *queue) dispatchLocked() {
	now := q.clock.Now()
	for i := 0; i < len(q.ring) && q.running < q.workers; {
		p := q.ring[i]
		if len(p.waiting) > 0 && !q.mayRunLocked(p, now) {
			i++
			continue
		}
		q.ring = slices.Delete(q.ring, i, i+1)
		if p.inRing = len(p.waiting) > 0; !p.inRing {
			continue
		}
		l := p.waiting[0]
		p.waiting = p.waiting[1:]
		if p.inRing = len(p.waiting) > 0; p.inRing {
			q.ring = append(q.ring, p)
		}
		l.hasTurn = true
		q.running++
		p.running++
		p.tenant.running++
		l.turn <- struct{}{}
	}
}

func (q *queue) mayRunLocked(p *productState, now time.Time) bool {
	return p.tenant.running < max(1, q.workers/tenantShare) && p.running < p.turns(now)
}

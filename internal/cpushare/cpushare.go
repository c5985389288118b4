// Package cpushare shares processor time among namespaces: what one of them asks to be
// computed takes it as much of the processor as any other that asks, however much it is.
//
// Work is done in steps of about a [Slice], each in one of a few places. Of the
// namespaces that wait for a place the one that has used the least time is next. Time is
// what was used, not what was asked for: a step that takes too long is paid for by who
// made it, with later turns.
package cpushare

import (
	"container/heap"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// Slice is how long a step should take at the most. It is what a caller, and whoever has
// the next turn, may have to wait for.
const Slice = time.Millisecond

// Pool is a number of places to compute in. It is safe for concurrent use.
type Pool struct {
	clock clock.PassiveClock

	mu         sync.Mutex
	places     int
	free       int
	namespaces map[string]*account // of those that wait or compute, or have used more than their share
	waiting    queue
	now        time.Duration // what the namespace had used that was served last: nobody who comes starts below
}

// account is what a namespace has used.
type account struct {
	name    string
	used    time.Duration
	inside  int             // steps under way
	waiters []chan struct{} // closed when it is their turn
	at      int             // in the queue
}

// New returns a pool of n places, at least one.
func New(n int, clk clock.PassiveClock) *Pool {
	n = max(n, 1)
	return &Pool{clock: clk, places: n, free: n, namespaces: map[string]*account{}}
}

// Run calls step, in turn with the steps of others, until it reports that there is no
// more to do. A step looks at ctx if it may take longer than a [Slice]; Run looks at it
// before each.
func (p *Pool) Run(ctx context.Context, namespace string, step func() (more bool)) error {
	for more := true; more; {
		a, err := p.enter(ctx, namespace)
		if err != nil {
			return err
		}
		more = p.do(a, step)
		runtime.Gosched() // to others than us, who wait for a processor and for no place
	}
	return nil
}

func (p *Pool) do(a *account, step func() bool) bool {
	began := p.clock.Now()
	defer func() { p.leave(a, p.clock.Since(began)) }() // also of a step that panics
	return step()
}

// enter waits for a place. A step is paid for with a whole slice when it begins, and
// settled when it ends, so that a namespace does not get all places at once that are free.
func (p *Pool) enter(ctx context.Context, namespace string) (*account, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("wait for processor time: %w", err)
	}
	p.mu.Lock()
	a := p.namespaces[namespace]
	if a == nil {
		a = &account{name: namespace}
		p.namespaces[namespace] = a
	}
	if a.inside == 0 && len(a.waiters) == 0 {
		a.used = max(a.used, p.now) // what it did not use is gone
	}
	if p.free > 0 {
		p.free--
		p.serveLocked(a)
		p.mu.Unlock()
		return a, nil
	}
	turn := make(chan struct{})
	a.waiters = append(a.waiters, turn)
	if len(a.waiters) == 1 {
		heap.Push(&p.waiting, a)
	}
	p.mu.Unlock()

	select {
	case <-turn:
		return a, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(a.waiters, turn); i >= 0 {
		if a.waiters = slices.Delete(a.waiters, i, i+1); len(a.waiters) == 0 {
			heap.Remove(&p.waiting, a.at)
		}
	} else {
		p.leaveLocked(a, 0) // its turn has come all the same
	}
	return nil, fmt.Errorf("wait for processor time: %w", ctx.Err())
}

func (p *Pool) serveLocked(a *account) {
	p.now = max(p.now, a.used)
	a.inside++
	a.used += Slice
}

func (p *Pool) leave(a *account, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaveLocked(a, took)
}

// leaveLocked settles a step and hands its place on.
func (p *Pool) leaveLocked(a *account, took time.Duration) {
	a.inside--
	a.used += took - Slice
	switch {
	case len(a.waiters) > 0:
		heap.Fix(&p.waiting, a.at)
	case a.inside == 0 && a.used <= p.now:
		delete(p.namespaces, a.name) // as if it had never been
	}
	if len(p.waiting) == 0 {
		if p.free++; p.free == p.places {
			p.now = 0
			clear(p.namespaces) // nobody waits for what anybody has used
		}
		return
	}
	next := p.waiting[0]
	turn := next.waiters[0]
	next.waiters = next.waiters[1:]
	p.serveLocked(next)
	if len(next.waiters) == 0 {
		next.waiters = nil
		heap.Pop(&p.waiting)
	} else {
		heap.Fix(&p.waiting, 0)
	}
	close(turn)
}

// queue is the accounts of those who wait, the one that has used the least first.
type queue []*account

var _ heap.Interface = (*queue)(nil)

// Len implements [heap.Interface].
func (q queue) Len() int { return len(q) }

// Less implements [heap.Interface].
func (q queue) Less(i, j int) bool { return q[i].used < q[j].used }

// Swap implements [heap.Interface].
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push implements [heap.Interface].
func (q *queue) Push(x any) {
	a := x.(*account) //nolint:forcetypeassert // the heap holds nothing else
	a.at = len(*q)
	*q = append(*q, a)
}

// Pop implements [heap.Interface].
func (q *queue) Pop() any {
	last := len(*q) - 1
	a := (*q)[last]
	(*q)[last], *q = nil, (*q)[:last]
	return a
}

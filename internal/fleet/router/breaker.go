package router

import (
	"context"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"batchtask.dev/operator/internal/fleet"
)

const (
	// breakFirst and breakMost are how long calls fail at once after a server was found to be
	// away: the first time, and at most, when it was found so again and again.
	breakFirst, breakMost = time.Second, 30 * time.Second
	// suspectAfter is how long a call is under way until somebody finds out whether the server
	// answers at all, and probeTimeout how long that may take.
	suspectAfter, probeTimeout = 5 * time.Second, 10 * time.Second
)

// breaker keeps calls from waiting for a server that is away. When one was found to be, calls
// fail at once for a while; then one alone tries whether it is back.
type breaker struct {
	ctx   context.Context //nolint:containedctx // of the probes, which belong to no call
	clock clock.PassiveClock
	// probe asks a server, by a connection of its own, whether it is there.
	probe func(context.Context) (away error)

	mu       sync.Mutex
	why      *fleet.UnavailableError // nil while the server is there
	failures int
	until    time.Time
	trying   *call
	calls    map[*call]bool
	probing  bool
	logged   time.Time
}

// call is one that is under way.
type call struct {
	cancel context.CancelCauseFunc
	since  time.Time
	watch  *time.Timer
}

// begin admits a call, or returns why there is none.
func (b *breaker) begin(ctx context.Context) (context.Context, *call, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.clock.Now()
	if b.why != nil && (now.Before(b.until) || b.trying != nil) {
		return nil, nil, b.why
	}
	c := &call{since: now}
	if b.why != nil {
		b.trying = c
	}
	ctx, c.cancel = context.WithCancelCause(ctx)
	c.watch = time.AfterFunc(suspectAfter, func() { b.suspect(c) })
	if b.calls == nil {
		b.calls = map[*call]bool{}
	}
	b.calls[c] = true
	return ctx, c, nil
}

// end takes note of how a call has ended: away is why the server is not there, and answered
// says that it is. changed says that either is news.
func (b *breaker) end(c *call, away *fleet.UnavailableError, answered bool) (changed bool) {
	c.watch.Stop()
	c.cancel(nil)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.calls, c)
	tried := b.trying == c
	if tried {
		b.trying = nil
	}
	switch {
	case away != nil && b.why != nil && !tried:
		return false // it began before that was known
	case away != nil:
		return b.trip(away)
	case answered && b.why != nil:
		b.close()
		return true
	}
	return false
}

// close lets all calls through again, whatever becomes of the one that tries.
func (b *breaker) close() { b.why, b.failures, b.trying = nil, 0, nil }

func (b *breaker) trip(away *fleet.UnavailableError) (changed bool) {
	changed = b.why == nil
	b.why = away
	b.failures++
	b.until = b.clock.Now().Add(b.pause(b.failures))
	return changed
}

func (b *breaker) pause(failures int) time.Duration {
	return min(breakMost, breakFirst<<min(failures-1, 10))
}

// suspect finds out whether the server answers, while a call waits for long. If not, all
// that wait for long end. If so, nobody has to wait for the one that tries: it may take
// long for what it does, or wait for a place that its namespace has none of.
func (b *breaker) suspect(c *call) {
	b.mu.Lock()
	if !b.calls[c] {
		b.mu.Unlock()
		return
	}
	c.watch.Reset(suspectAfter)
	if b.probing {
		b.mu.Unlock()
		return
	}
	b.probing = true
	b.mu.Unlock()

	ctx, cancel := context.WithTimeout(b.ctx, probeTimeout)
	away := b.probe(ctx)
	cancel()

	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
	if b.ctx.Err() != nil {
		return
	}
	if away == nil {
		b.close()
		return
	}
	why := &fleet.UnavailableError{Reason: "the database does not answer in time", Err: away}
	b.trip(why)
	for c := range b.calls {
		if b.clock.Since(c.since) >= suspectAfter {
			c.cancel(why)
		}
	}
}

package mqtt

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// Overdue messages have given their places of the window back: they wait aside, in the order in which they became
// overdue, and are sent again and again on a connection of their own until they are acknowledged or not live any more.
// AckTimeout sets the pace. So somebody whose messages the broker takes and never acknowledges keeps nobody from
// publishing: neither places of the window nor the shared connections are lost to him.

// maxAsideFlight is how many messages the connection for overdue ones has in flight at most.
const maxAsideFlight = 4096

// aside is a list of overdue messages.
type aside struct {
	mu    sync.Mutex
	items []*item
}

func (a *aside) add(it *item) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.items = append(a.items, it)
}

// take removes the first message; nil for none.
func (a *aside) take() *item {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.items) == 0 {
		return nil
	}
	it := a.items[0]
	a.items[0] = nil
	a.items = a.items[1:]
	return it
}

// all removes all messages.
func (a *aside) all() []*item {
	a.mu.Lock()
	defer a.mu.Unlock()
	items := a.items
	a.items = nil
	return items
}

func (a *aside) empty() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.items) == 0
}

// retryLater puts a message aside. It may be called with the lock of the quarantine.
func (p *Pool) retryLater(it *item) {
	p.freeSlot(it)
	p.aside.add(it)
	notify(p.retryWork)
}

// sweepAside settles messages that nobody waits for.
func (p *Pool) sweepAside() {
	p.aside.mu.Lock()
	var dead []*item
	p.aside.items = slices.DeleteFunc(p.aside.items, func(it *item) bool {
		if it.delivery.Live() {
			return false
		}
		dead = append(dead, it)
		return true
	})
	p.aside.mu.Unlock()
	for _, it := range dead {
		p.settle(it, ErrAbandoned)
	}
}

// runRetry serves overdue messages, on a connection that exists while there are any.
func (p *Pool) runRetry(ctx, connCtx context.Context) {
	var pause backoff
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.retryWork:
		}
		for !p.aside.empty() && ctx.Err() == nil {
			s, err := p.connect(connCtx)
			if err != nil {
				p.log.Error(err, "Cannot connect for overdue messages")
				p.sleep(ctx, pause.next())
				continue
			}
			pause = backoff{}
			stop := make(chan struct{})
			timer := p.clock.NewTimer(retryTurn)
			p.running.Go(func() {
				defer close(stop)
				select {
				case <-timer.C():
				case <-s.conn.dead:
				}
			})
			if err := p.retryLine().serve(ctx, s, stop); err != nil {
				p.log.V(1).Info("Connection for overdue messages lost", "reason", err.Error())
				p.sleep(ctx, pause.next())
			}
			timer.Stop()
		}
	}
}

// retryLine feeds one connection for overdue messages.
func (p *Pool) retryLine() feedLine {
	inFlight := &atomic.Int64{}
	return feedLine{
		pool: p,
		next: func(ctx context.Context, s *sender, stop <-chan struct{}) *item {
			for {
				if inFlight.Load() < maxAsideFlight {
					if it := p.aside.take(); it != nil {
						inFlight.Add(1)
						return it
					}
				}
				select {
				case <-ctx.Done():
					return nil
				case <-stop:
					return nil
				case <-s.conn.dead:
					return nil
				case <-p.retryWork:
				}
			}
		},
		landed: func(n int) {
			if inFlight.Add(int64(-n)) < maxAsideFlight {
				notify(p.retryWork)
			}
		},
	}
}

package shim

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"batchtask.dev/operator/internal/qcloud"
)

// share is how much of something one of those who share it may have, by what is left of it:
// a seventh. Who is alone gets an eighth of all, of many greedy ones each gets less, and
// something is always left for who comes next.
func share(left int) int { return left / 7 }

// places are those of the calls that are worked on at once. Each account gets its share, each
// product of an account a part of that, and who waits is served account by account: what one
// account calls, and a database behind one of its products that does not answer, hold up
// nobody else.
type places struct {
	metrics    *Metrics
	all        int
	perProduct int
	maxWaiting int

	mu       sync.Mutex
	used     int
	waiting  int
	accounts map[string]*lane
	turns    []*lane // those with calls that wait, in the order of their turns
}

// lane is one account.
type lane struct {
	used     int
	products map[string]int
	queue    []*waiter
}

// waiter is a call that waits.
type waiter struct {
	product string
	granted chan struct{} // closed when it has its place
}

// Bounds of the calls that wait; their bodies have a bound of their own.
const (
	waitingPerPlace = 4
	minWaiting      = 1024
)

func newPlaces(metrics *Metrics, all int) *places {
	return &places{metrics: metrics, all: all, perProduct: max(1, all/32), maxWaiting: max(minWaiting, waitingPerPlace*all), accounts: map[string]*lane{}}
}

// take waits for a place, until ctx ends. A call about one product names it; another leaves
// it empty. The place must be left.
func (p *places) take(ctx context.Context, account, product string) (leave func(), err error) {
	leave = func() { p.leave(account, product) }
	w, err := p.enter(account, product)
	if err != nil || w == nil {
		return leave, err
	}
	select {
	case <-w.granted:
		return leave, nil
	case <-ctx.Done():
	}
	if !p.giveUp(account, w) {
		return leave, nil // it was granted at the same moment
	}
	p.metrics.refused.WithLabelValues(limitPlaces).Inc()
	return nil, p.explain(account, product, ctx.Err())
}

// enter takes a place that is free, or else returns what waits for one.
func (p *places) enter(account, product string) (*waiter, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.accounts[account]
	if l == nil {
		l = &lane{products: map[string]int{}}
		p.accounts[account] = l
	}
	if p.may(l, product) {
		p.occupy(l, product)
		return nil, nil //nolint:nilnil // it need not wait
	}
	if len(l.queue) >= max(1, share(p.maxWaiting-p.waiting)) {
		p.metrics.refused.WithLabelValues(limitWaiting).Inc()
		return nil, qcloud.Errorf(qcloud.KindRateLimited, "", "%d calls of this account are being worked on and %d wait already: slow down", l.used, len(l.queue))
	}
	w := &waiter{product: product, granted: make(chan struct{})}
	if len(l.queue) == 0 {
		p.turns = append(p.turns, l)
	}
	l.queue = append(l.queue, w)
	p.waiting++
	p.metrics.waiting.Set(float64(p.waiting))
	return w, nil
}

// may reports whether another call of the account may have a place now.
func (p *places) may(l *lane, product string) bool {
	left := p.all - p.used
	return left > 0 && l.used < max(1, share(left)) && (product == "" || l.products[product] < p.perProduct)
}

func (p *places) occupy(l *lane, product string) {
	p.used++
	l.used++
	if product != "" {
		l.products[product]++
	}
	p.metrics.inFlight.Set(float64(p.used))
}

func (p *places) leave(account, product string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.accounts[account]
	p.used--
	l.used--
	if product != "" {
		if l.products[product]--; l.products[product] == 0 {
			delete(l.products, product)
		}
	}
	p.metrics.inFlight.Set(float64(p.used))
	p.grant()
	p.forget(account)
}

// grant gives the places that are free to those who wait, to each account in its turn one.
func (p *places) grant() {
	for passed := 0; passed < len(p.turns) && p.used < p.all; {
		l := p.turns[0]
		p.turns = append(p.turns[1:], l) // its next turn comes after all others'
		next := slices.IndexFunc(l.queue, func(w *waiter) bool { return p.may(l, w.product) })
		if next < 0 {
			passed++
			continue
		}
		passed = 0
		w := l.queue[next]
		p.dequeue(l, w)
		p.occupy(l, w.product)
		close(w.granted)
	}
}

// giveUp reports whether the call still waited, and does no longer.
func (p *places) giveUp(account string, w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.accounts[account]
	if l == nil || !slices.Contains(l.queue, w) {
		return false
	}
	p.dequeue(l, w)
	p.forget(account)
	return true
}

func (p *places) dequeue(l *lane, w *waiter) {
	l.queue = slices.DeleteFunc(l.queue, func(other *waiter) bool { return other == w })
	if len(l.queue) == 0 {
		p.turns = slices.DeleteFunc(p.turns, func(other *lane) bool { return other == l })
	}
	p.waiting--
	p.metrics.waiting.Set(float64(p.waiting))
}

func (p *places) forget(account string) {
	if l := p.accounts[account]; l.used == 0 && len(l.queue) == 0 {
		delete(p.accounts, account)
	}
}

// explain tells why a call has waited in vain. That its own account's calls take long its
// caller can see and change; that all places are taken it cannot.
func (p *places) explain(account, product string, cause error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.accounts[account]
	switch {
	case l != nil && product != "" && l.products[product] >= p.perProduct:
		return qcloud.Errorf(qcloud.KindRateLimited, "", "%d calls about this product are being worked on and do not end: slow down", l.products[product])
	case l != nil && l.used > 0 && l.used >= share(p.all-p.used):
		return qcloud.Errorf(qcloud.KindRateLimited, "", "%d calls of this account are being worked on and do not end: slow down", l.used)
	default:
		return fmt.Errorf("waiting for one of %d places (--max-in-flight): %w", p.all, cause)
	}
}

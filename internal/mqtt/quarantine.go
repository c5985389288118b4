package mqtt

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxActiveLanes bounds the connections of lanes; further lanes wait for their turn.
	maxActiveLanes = 8
	// laneMemory is how long a lane is remembered without any message.
	laneMemory = 10 * time.Minute
	// maxGuilty is how many products of a tenant may be on probation before all others of the tenant are kept apart
	// from their first message on.
	maxGuilty = 4
)

// quarantine keeps apart what the broker may have dropped a connection for, in a lane for each product: it can harm
// only itself there. Suspicion belongs to the product and outlives a task: the broker's access list tells products
// apart, not tasks, and else each new task would cost everybody a shared connection.
//
// What a tenant can make others lose is so a shared connection for each of its products, up to maxGuilty of them in
// the time of a probation.
//
// Its lock comes after none, and before none but that of the messages that wait aside.
type quarantine struct {
	pool *Pool
	// work says that a lane may be started.
	work chan struct{}
	// count is len(lanes), for a look without the lock.
	count atomic.Int32

	mu      sync.Mutex
	lanes   map[origin]*lane
	guilty  map[string]int // lanes whose product is on probation by its own doing, by tenant
	active  int            // lanes that have a connection or try to get one
	waiting []*lane        // lanes that wait to be active
}

func newQuarantine(p *Pool) *quarantine {
	return &quarantine{pool: p, work: make(chan struct{}, 1), lanes: map[origin]*lane{}, guilty: map[string]int{}}
}

// accuse moves what a dropped connection had in flight to the lanes of the products.
func (q *quarantine) accuse(items []*item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range items {
		l := q.lanes[it.source.origin()]
		if l == nil {
			l = q.open(it.source.origin())
		}
		it.suspect = true
		l.suspects++
		l.add(it)
	}
}

// divert gives a message to the lane of its product if there is one, or if its tenant has earned one.
func (q *quarantine) divert(it *item) bool {
	if q.count.Load() == 0 {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.lanes[it.source.origin()]
	if l == nil {
		if q.guilty[it.source.Tenant] < maxGuilty {
			return false
		}
		l = q.open(it.source.origin())
		l.apartUntil = q.pool.clock.Now().Add(q.pool.options.Probation)
	}
	l.add(it)
	return true
}

// open needs q.mu.
func (q *quarantine) open(of origin) *lane {
	l := &lane{quarantine: q, pool: q.pool, origin: of, wake: make(chan struct{}, 1), parts: map[any]*part{}}
	q.lanes[of] = l
	q.count.Store(int32(len(q.lanes))) //nolint:gosec // at most the window, and products on probation
	return l
}

// close forgets a lane. It needs q.mu.
func (q *quarantine) close(l *lane) {
	l.setGuilty(false)
	delete(q.lanes, l.origin)
	q.count.Store(int32(len(q.lanes))) //nolint:gosec // as in open
}

// line lets a lane wait for its turn. It needs q.mu.
func (q *quarantine) line(l *lane) {
	l.inLine = true
	q.waiting = append(q.waiting, l)
	notify(q.work)
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run starts lanes as places become free.
func (q *quarantine) run(ctx, connCtx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.work:
		}
		q.mu.Lock()
		for q.active < maxActiveLanes && len(q.waiting) > 0 {
			l := q.waiting[0]
			q.waiting = slices.Delete(q.waiting, 0, 1)
			l.inLine, l.active = false, true
			q.active++
			q.pool.running.Go(func() { l.run(ctx, connCtx) })
		}
		q.mu.Unlock()
	}
}

// sweep settles waiting messages that are not live, and forgets lanes that were not used for long. Live is asked
// without the lock, for the caller may hold one of its own in Publish.
func (q *quarantine) sweep() {
	now := q.pool.clock.Now()
	waiting := map[*lane][]*item{}
	q.mu.Lock()
	for _, l := range q.lanes {
		if items := l.items(); len(items) > 0 {
			waiting[l] = items
		} else if !l.active && !l.inLine && now.Sub(l.lastUsed) >= max(laneMemory, q.pool.options.Probation) {
			q.close(l)
		}
	}
	q.mu.Unlock()
	for l, items := range waiting {
		for _, it := range items {
			if !it.delivery.Live() {
				l.drop(it)
			}
		}
		l.age(now)
	}
}

// empty forgets all lanes and returns what waits in them. Nothing runs any more.
func (q *quarantine) empty() []*item {
	q.mu.Lock()
	defer q.mu.Unlock()
	var left []*item
	for _, l := range q.lanes {
		left = append(left, l.items()...)
	}
	clear(q.lanes)
	clear(q.guilty)
	return left
}

package service

import (
	"context"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// placeBytes is the size of a place of the queue. A message takes one for each begun.
const placeBytes = 4 << 10

// Shares of what all have together. A tenant is a namespace: it may have any number of
// products.
const (
	// tenantShare is the part of the places and of the workers that a tenant may take: an
	// eighth.
	tenantShare = 8
	// deviceShare is the part of the places that a device may take.
	deviceShare = 128
)

// aloneAfter is for how long nobody else must have been heard of for a tenant to be alone.
const aloneAfter = time.Minute

// queue holds the messages of devices until they are done, in a line for each device. It
// says who may be worked on next; see turns.go. Number and size of what it holds are
// bounded.
//
// A tenant that is alone, and whose stores are well, may fill the queue, and the
// connection is then held up: the broker keeps what does not fit. As soon as there are
// others the connection must flow, or one tenant's messages would hold up all. Then each
// may take no more than a seventh of what is free, so an eighth of all at the most, and
// always leaves room for others; what is over that is refused.
type queue struct {
	places, workers int
	clock           clock.WithTicker
	// slowAfter is after which time a call of a store is slow.
	slowAfter time.Duration
	// awayAfter is how long a product's store may fail before its devices are told at once.
	awayAfter time.Duration
	closing   chan struct{} // closed when nothing more is taken
	empty     chan struct{} // closed when, after that, nothing is held

	mu       sync.Mutex
	tenants  map[string]*tenant
	products map[string]*productState
	lines    map[device]*line
	ring     []*productState // those of which a line waits for its turn
	taken    int             // places
	jobs     int
	running  int // lines that have a turn
	closed   bool
	pressed  bool          // acknowledgements are held up
	changed  chan struct{} // closed when there is more room; nil while nobody waits for it
}

// tenant is a namespace with messages.
type tenant struct {
	namespace      string
	taken, running int
	heard          time.Time // the last message
}

// productState is a product with messages, or in trouble.
type productState struct {
	id             string
	tenant         *tenant
	taken, running int
	lines          int
	waiting        []*line // for a turn
	inRing         bool
	trouble
}

// line holds the messages of one device.
type line struct {
	device  device
	product *productState
	jobs    []*job
	taken   int
	turn    chan struct{} // has an element when the line is given its turn
	hasTurn bool
	attempt time.Time // when the call began that is under way; zero for none
}

// job is a message of a device.
type job struct {
	message message
	arrived time.Time
	tried   time.Time // when it had its first turn
	cancel  context.CancelCauseFunc
}

// message is what comes from the connection.
type message interface {
	Payload() []byte
	Reply(topic string, payload []byte) error
	Ack()
}

func newQueue(places, workers int, clk clock.WithTicker) *queue {
	return &queue{
		places: places, workers: workers, clock: clk, slowAfter: time.Second, awayAfter: DefaultRetryTime,
		closing: make(chan struct{}), empty: make(chan struct{}),
		tenants: map[string]*tenant{}, products: map[string]*productState{}, lines: map[device]*line{},
	}
}

// verdict is what becomes of a message that has come.
type verdict int

const (
	held      verdict = iota // it is in the queue
	heldFirst                // the same, and nobody works on its line yet
	gone                     // its connection was lost or the queue closed while there was no room
	refused                  // see the reason
)

// knows says whether a product's tenant is known.
func (q *queue) knows(productID string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.products[productID] != nil
}

// put adds a message to its device's line; namespace is where the product is, unless that
// is known already. It waits while there is no room, if the tenant is alone, until there
// is or giveUp is closed. It must not be called twice at once. The line is that of heldFirst.
func (q *queue) put(d device, namespace string, j *job, giveUp <-chan struct{}) (*line, verdict, string) {
	j.arrived = q.clock.Now()
	for {
		l, v, reason, room := q.tryPut(d, namespace, j)
		if room == nil {
			return l, v, reason
		}
		select {
		case <-room:
		case <-q.closing:
			return nil, gone, ""
		case <-giveUp:
			return nil, gone, ""
		}
	}
}

// tryPut is put; room is not nil if it must be tried again when it is closed.
func (q *queue) tryPut(d device, namespace string, j *job) (l *line, v verdict, reason string, room <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, gone, "", nil
	}
	p := q.productLocked(d.productID, namespace)
	p.tenant.heard = j.arrived
	l = q.lines[d]
	if reason, wait := q.fullLocked(p, l, q.weight(j)); wait {
		if q.changed == nil {
			q.changed = make(chan struct{})
		}
		return nil, held, "", q.changed
	} else if reason != "" {
		q.forgetLocked(p)
		return nil, refused, reason, nil
	}
	v = held
	if l == nil {
		l = &line{device: d, product: p, turn: make(chan struct{}, 1)}
		q.lines[d] = l
		p.lines++
		v = heldFirst
	}
	l.jobs = append(l.jobs, j)
	q.jobs++
	q.takeLocked(l, q.weight(j))
	return l, v, "", nil
}

// fullLocked says why a message of so many places cannot be taken: "" if it can, and
// whether it is worth waiting.
func (q *queue) fullLocked(p *productState, l *line, weight int) (reason string, wait bool) {
	free := q.places - q.taken
	inLine := 0
	if l != nil {
		inLine = l.taken
	}
	fits := weight <= free
	switch {
	case p.away:
		return refusedAway, false
	// Whoever has nothing in the queue may always put something in, if there is room.
	case inLine > 0 && inLine+weight > free/(deviceShare-1):
		reason = refusedDevice
	case p.tenant.taken > 0 && p.tenant.taken+weight > free/(tenantShare-1):
		reason = refusedTenant
	case !fits:
		reason = refusedFull
	default:
		return "", false
	}
	if p.inTrouble() || !q.aloneLocked(p.tenant) {
		return reason, false
	}
	return "", !fits
}

// aloneLocked says whether nobody else has messages, or had any in the last minute. Devices
// of products that are nobody's do not count.
func (q *queue) aloneLocked(t *tenant) bool {
	now := q.clock.Now()
	for _, other := range q.tenants {
		if other != t && other.namespace != "" && (other.taken > 0 || now.Sub(other.heard) < aloneAfter) {
			return false
		}
	}
	return true
}

func (q *queue) productLocked(id, namespace string) *productState {
	p := q.products[id]
	if p == nil {
		p = &productState{id: id, tenant: q.tenantLocked(namespace)}
		q.products[id] = p
	}
	return p
}

func (q *queue) tenantLocked(namespace string) *tenant {
	t := q.tenants[namespace]
	if t == nil {
		t = &tenant{namespace: namespace}
		q.tenants[namespace] = t
	}
	return t
}

// owned says in which namespace a line's product was found. That can be another one than
// when the product was first heard of.
func (q *queue) owned(l *line, namespace string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := l.product
	if p.tenant.namespace == namespace {
		return
	}
	was, is := p.tenant, q.tenantLocked(namespace)
	was.taken, was.running = was.taken-p.taken, was.running-p.running
	is.taken, is.running = is.taken+p.taken, is.running+p.running
	is.heard, p.tenant = later(is.heard, was.heard), is
}

func (q *queue) takeLocked(l *line, places int) {
	q.taken += places
	l.taken += places
	l.product.taken += places
	l.product.tenant.taken += places
}

// weight is how many places a message takes.
func (q *queue) weight(j *job) int { return min(1+len(j.message.Payload())/placeBytes, q.places) }

// first returns the message of a line that is to be carried out, nil when there is none.
func (q *queue) first(l *line) *job {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(l.jobs) == 0 {
		delete(q.lines, l.device)
		l.product.lines--
		q.forgetLocked(l.product)
		return nil
	}
	return l.jobs[0]
}

// done removes the first message of a line.
func (q *queue) done(l *line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.takeLocked(l, -q.weight(l.jobs[0]))
	l.jobs[0] = nil
	l.jobs = l.jobs[1:]
	q.jobs--
	q.roomLocked()
	if q.closed && q.jobs == 0 {
		close(q.empty)
	}
}

func (q *queue) roomLocked() {
	if q.changed != nil {
		close(q.changed)
		q.changed = nil
	}
}

// forgetLocked removes a product of which there is nothing to remember.
func (q *queue) forgetLocked(p *productState) {
	if p.lines == 0 && p.untroubled() {
		delete(q.products, p.id)
	}
}

// close makes the queue take nothing more.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.closed = true
	close(q.closing)
	if q.jobs == 0 {
		close(q.empty)
	}
}

// held is how many messages the queue holds.
func (q *queue) held() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.jobs
}

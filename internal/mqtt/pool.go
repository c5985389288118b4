package mqtt

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"
)

const (
	// reconnectMin and reconnectMax bound the pause before the next try to connect; each try doubles it.
	reconnectMin = 100 * time.Millisecond
	reconnectMax = 5 * time.Second
	// sweepWaiting is how often waiting messages are asked whether they are still wanted.
	sweepWaiting = time.Second
	// drainTime is what messages in flight get to be acknowledged when the pool is closed.
	drainTime = time.Second
	// retryTurn is how long a connection for overdue messages takes on messages.
	retryTurn = 10 * time.Second
)

// Pool publishes messages over a few connections. Make it with New.
type Pool struct {
	options Options
	files   files
	clock   clock.WithTicker
	log     logr.Logger
	metrics *Metrics

	// slots holds one element for each message that has a place of the window, so its capacity, the window, is also
	// enough for the queue: sending to it never blocks whoever holds such a message.
	slots chan struct{}
	// queue feeds the shared connections, aside the connection for overdue messages, which have no place.
	queue chan *item
	aside aside
	// retryWork says that aside may hold something.
	retryWork chan struct{}
	// current is what the files held when they were last looked at.
	current atomic.Pointer[fingerprint]

	running    sync.WaitGroup
	sharedUp   atomic.Int32
	quarantine *quarantine
	done       chan struct{} // closed with the pool

	mu     sync.Mutex
	seq    uint64
	began  bool
	closed bool
	shared map[*sender]chan struct{} // closing the channel makes the sender drain and be renewed
	ended  uint64                    // shared connections that have ended, other than in order
}

// New makes a pool that is not connected yet. It returns an error that names the option that is wrong; whether files
// can be read and the broker reached shows once the pool was started.
func New(opts Options) (*Pool, error) {
	to, err := parseURL(opts.URL)
	if err != nil {
		return nil, fmt.Errorf("mqtt options: %w", err)
	}
	opts.setDefaults()
	if err := opts.validate(to); err != nil {
		return nil, fmt.Errorf("mqtt options: %w", err)
	}
	opts.URL = "" // it may hold a password
	p := &Pool{
		options: opts, clock: opts.Clock, metrics: opts.Metrics,
		log:   opts.Log.WithValues("broker", to.url.Scheme+"://"+to.url.Host),
		slots: make(chan struct{}, opts.Window), queue: make(chan *item, opts.Window),
		retryWork: make(chan struct{}, 1), done: make(chan struct{}), shared: map[*sender]chan struct{}{},
	}
	p.quarantine = newQuarantine(p)
	p.files = files{options: &p.options, target: to}
	return p, nil
}

// Start runs the pool until ctx ends. Then it gives messages in flight a second to be acknowledged, closes the
// connections and settles everything left with ErrAbandoned; Publish fails with ErrClosed from then on. A pool can be
// started once.
func (p *Pool) Start(ctx context.Context) error {
	p.mu.Lock()
	again := p.began
	p.began = true
	p.mu.Unlock()
	if again {
		return errors.New("the mqtt pool was started before")
	}
	// Connections outlive ctx by the time they get to drain.
	connCtx, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	for range p.options.Connections {
		p.running.Go(func() { p.runShared(ctx, connCtx) })
	}
	p.running.Go(func() { p.runRetry(ctx, connCtx) })
	p.running.Go(func() { p.quarantine.run(ctx, connCtx) })
	p.running.Go(func() { p.watchFiles(ctx) })
	p.running.Go(func() { p.sweepWaiting(ctx) })

	<-ctx.Done()
	ended := make(chan struct{})
	go func() { p.running.Wait(); close(ended) }()
	timer := p.clock.NewTimer(drainTime)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C():
		cut()
		<-ended
	}
	p.abandonAll()
	return nil
}

// Publish takes a message and returns; the result goes to its Settle. It blocks only while as many messages as the
// window holds have no result: only those count that were taken less than AckTimeout ago and are still Live, so nobody's
// messages keep others out for longer. How many older ones there are is for the callers to bound. With an error (that of ctx, or ErrClosed) the message was not taken and Settle is not
// called. An invalid message is taken, and settled with ErrInvalidMessage at once.
func (p *Pool) Publish(ctx context.Context, d Delivery) error {
	if err := validate(d.Topic(), d.Payload(), p.options.MaxPayloadBytes); err != nil {
		d.Settle(err)
		return nil
	}
	select {
	case p.slots <- struct{}{}:
	default:
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("waiting for room in the mqtt window: %w", ctx.Err())
		case <-p.done:
			return ErrClosed
		}
	}
	it := &item{delivery: d, source: d.Source(), at: p.clock.Now()}
	it.slot.Store(true)
	// The lock makes this all or nothing against abandonAll: either it is refused, or abandonAll finds it.
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		<-p.slots
		return ErrClosed
	}
	it.seq = p.seq
	p.seq++
	p.metrics.inFlight.Inc()
	p.queue <- it
	return nil
}

// Connected says whether a shared connection to the broker is up.
func (p *Pool) Connected() bool { return p.sharedUp.Load() > 0 }

// witness tells what the shared connections say of the broker, also of one whose end nobody has dealt with yet.
func (p *Pool) witness() witness {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := witness{ended: p.ended}
	for s := range p.shared {
		if s.conn.isDead() {
			w.ended++
		} else {
			w.up = true
		}
	}
	return w
}

// settle gives a message its result. Whoever calls it must be the holder, once.
func (p *Pool) settle(it *item, err error) {
	p.metrics.inFlight.Dec()
	p.freeSlot(it)
	it.delivery.Settle(err)
}

// freeSlot gives the place of a message back, if it has one. Only its holder may call it.
func (p *Pool) freeSlot(it *item) {
	if it.slot.CompareAndSwap(true, false) {
		<-p.slots
	}
}

// ageing says whether a message has had its place for as long as it may, or nobody waits for it.
func (p *Pool) ageing(it *item, now time.Time) bool {
	return it.slot.Load() && (now.Sub(it.at) >= p.options.AckTimeout || !it.delivery.Live())
}

// requeue puts a message where it waits to be sent: those without a place have none in the queue.
func (p *Pool) requeue(it *item) {
	if it.slot.Load() {
		p.queue <- it
	} else {
		p.retryLater(it)
	}
}

// live settles a message that nobody waits for, and says whether it is to be kept.
func (p *Pool) live(it *item) bool {
	if it.delivery.Live() {
		return true
	}
	p.settle(it, ErrAbandoned)
	return false
}

// feedLine feeds a connection; it is the owner of what that has in flight.
type feedLine struct {
	pool *Pool
	// next waits for a message to send; nil when there will be none. A message that is not sent goes to requeue.
	next func(ctx context.Context, s *sender, stop <-chan struct{}) *item
	// landed is called when messages are not in flight any more; it may be nil.
	landed func(n int)
}

func (f feedLine) acked(items []*item) {
	f.left(len(items))
	for _, it := range items {
		f.pool.settle(it, nil)
	}
}

func (f feedLine) overdue(it *item) {
	f.left(1)
	f.pool.retryLater(it)
}

func (f feedLine) left(n int) {
	if f.landed != nil {
		f.landed(n)
	}
}

// serve keeps a connection busy until stop or ctx ends that in an orderly way (nil), or it is lost. Whatever is left
// then has been passed on.
func (f feedLine) serve(ctx context.Context, s *sender, stop <-chan struct{}) error {
	p := f.pool
	s.startFeed(func() *item {
		for {
			// First: with several channels ready, select may choose the queue for ever.
			select {
			case <-ctx.Done():
				return nil
			case <-stop:
				return nil
			default:
			}
			it := f.next(ctx, s, stop)
			if it == nil || p.live(it) && !p.quarantine.divert(it) {
				return it
			}
			f.left(1)
		}
	}, p.requeue)
	cause := s.wait(f)
	switch {
	case cause == nil:
		s.close()
		return nil
	case brokerDropped(cause):
		p.quarantine.accuse(s.unacked)
	default:
		for i, it := range s.unacked {
			if i == 0 && errors.Is(cause, errAckTimeout) {
				// It may be this message alone that gets no answer. It must not end one shared connection after
				// the other.
				p.retryLater(it)
				continue
			}
			p.requeue(it)
		}
	}
	return cause
}

// fromQueue is the next of a feedLine of the queue.
func (p *Pool) fromQueue(ctx context.Context, s *sender, stop <-chan struct{}) *item {
	for s.crowded() {
		timer := p.clock.NewTimer(sweepInterval)
		select {
		case <-ctx.Done():
		case <-stop:
		case <-s.conn.dead:
		case <-timer.C():
			timer.Stop()
			continue
		}
		timer.Stop()
		return nil
	}
	select {
	case <-ctx.Done():
	case <-stop:
	case <-s.conn.dead:
	case it := <-p.queue:
		return it
	}
	return nil
}

// runShared keeps one shared connection.
func (p *Pool) runShared(ctx, connCtx context.Context) {
	line := feedLine{pool: p, next: p.fromQueue}
	var pause backoff
	for ctx.Err() == nil {
		s, err := p.connect(connCtx)
		if err != nil {
			p.log.Error(err, "Cannot connect")
			p.sleep(ctx, pause.next())
			continue
		}
		stop := make(chan struct{})
		p.mu.Lock()
		p.shared[s] = stop
		p.mu.Unlock()
		p.sharedUp.Add(1)
		p.metrics.connected.Inc()
		p.log.V(1).Info("Connected", "clientID", s.id)

		err = line.serve(ctx, s, stop)

		p.sharedUp.Add(-1)
		p.metrics.connected.Dec()
		p.mu.Lock()
		delete(p.shared, s)
		if err != nil {
			p.ended++
		}
		p.mu.Unlock()
		if err == nil {
			continue // closed by us: to be renewed, or for good
		}
		p.log.Info("Connection lost", "clientID", s.id, "reason", err.Error())
		if p.clock.Since(s.since) >= time.Second {
			pause = backoff{} // it did work, so try at once
			continue
		}
		p.sleep(ctx, pause.next())
	}
}

// sweepWaiting settles waiting messages that nobody waits for, also while no connection is up, and takes their places
// from those that have waited for long.
func (p *Pool) sweepWaiting(ctx context.Context) {
	tick := p.clock.NewTicker(sweepWaiting)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
		p.sweepQueue()
		p.sweepAside()
		p.quarantine.sweep()
	}
}

// sweepQueue goes round the queue once. Messages have no order there that matters.
func (p *Pool) sweepQueue() {
	now := p.clock.Now()
	for range len(p.queue) {
		select {
		case it := <-p.queue:
			switch {
			case !p.live(it):
			case p.ageing(it, now):
				p.retryLater(it)
			default:
				p.queue <- it
			}
		default:
			return
		}
	}
}

// watchFiles renews shared connections made with files that have changed since, one at a time and only while all are
// up: should the new files be wrong, the other connections go on. (Lanes look for themselves.)
func (p *Pool) watchFiles(ctx context.Context) {
	tick := p.clock.NewTicker(p.options.FileCheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
		a, err := p.files.read()
		if err != nil {
			p.log.Error(err, "Cannot check the connection settings")
			continue
		}
		p.current.Store(&a.fingerprint)
		p.renewOne(a.fingerprint)
	}
}

// renewalDue says whether a connection was made with files that have changed since.
func (p *Pool) renewalDue(s *sender) bool {
	current := p.current.Load()
	return current != nil && *current != s.files && p.clock.Since(s.since) > p.options.FileCheckInterval
}

func (p *Pool) renewOne(current fingerprint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.shared) < p.options.Connections {
		return
	}
	for s, stop := range p.shared {
		if s.files == current {
			continue
		}
		select {
		case <-stop: // still draining
		default:
			p.log.Info("Connection settings have changed, renewing a connection", "clientID", s.id)
			close(stop)
		}
		return
	}
}

// abandonAll settles what is left once nothing runs any more.
func (p *Pool) abandonAll() {
	p.mu.Lock()
	p.closed = true
	close(p.done)
	p.mu.Unlock()
	left := p.quarantine.empty()
	for len(p.queue) > 0 {
		left = append(left, <-p.queue)
	}
	left = append(left, p.aside.all()...)
	for _, it := range left {
		p.settle(it, ErrAbandoned)
	}
}

func (p *Pool) sleep(ctx context.Context, d time.Duration) {
	timer := p.clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C():
	}
}

// backoff is a pause that doubles from reconnectMin to reconnectMax, half of it random.
type backoff struct{ last time.Duration }

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, reconnectMin), reconnectMax)
	return b.last/2 + rand.N(b.last/2) //nolint:gosec // spreads clients in time, no secret
}

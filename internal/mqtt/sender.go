package mqtt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"k8s.io/utils/clock"
)

const (
	// sweepInterval is how often a connection looks beyond the oldest message it has in flight.
	sweepInterval = 100 * time.Millisecond
	// maxOverdue is how many messages a connection may give up waiting for before it is renewed: paho keeps their
	// packet identifiers, of which there are 65535.
	maxOverdue = 4096
	// disconnectTimeout bounds an orderly end in milliseconds.
	disconnectTimeout = 500
)

// Reasons of our own to end a connection; after these no message is a suspect.
var (
	errAckTimeout  = errors.New("no acknowledgement came in time")
	errTooManyLate = errors.New("too many messages were not acknowledged")
	errNotSent     = errors.New("a message could not be handed over")
	errGivenUp     = errors.New("paho gave up the connection")
	errShutdown    = errors.New("the pool is being closed")
)

// owner is told what becomes of the messages of a sender. It must not block.
type owner interface {
	// acked gets messages whose PUBACK has come.
	acked(items []*item)
	// overdue gets a message without PUBACK after AckTimeout, although one sent later has its own. The sender has
	// let go of it.
	overdue(it *item)
}

// sender publishes on one link. One goroutine sends (feed), another
// waits for the PUBACKs in the order sent (wait). Sending may hang inside paho for twice WriteTimeout when the
// connection has just died; wait does not wait for that, it takes the message back and leaves the goroutine to end by itself.
type sender struct {
	*link
	clock   clock.WithTicker
	metrics *Metrics
	opts    *Options
	spawn   func(func()) // starts a goroutine that the pool waits for
	pool    *Pool
	// wake tells wait that a token has come or that feed has ended; used while asleep is set.
	wake chan struct{}

	mu      sync.Mutex
	flight  []entry // in the order sent; the used part begins at first
	first   int
	nextNo  uint64
	feeding bool
	asleep  bool
	ended   bool

	// Only for the goroutine in wait, and for others once that has returned.
	ackedNo uint64 // the latest sent message acknowledged so far, plus one
	ackedAt time.Time
	late    int
	done    []*item
	unacked []*item // after the end: what the sender leaves behind, oldest first
}

// entry is a message in flight. The token is nil while it is being handed to paho.
type entry struct {
	item  *item
	token paho.Token
	no    uint64
	at    time.Time
}

// connect makes a connection. Ending ctx aborts the attempt, and the connection later.
func (p *Pool) connect(ctx context.Context) (*sender, error) {
	l, err := p.files.open(ctx, newClientID(p.options.ClientIDPrefix), func(o *paho.ClientOptions) {
		// See the package comment: a clean session makes a token worth something.
		o.SetCleanSession(true).SetOrderMatters(false)
		o.SetPingTimeout(min(p.options.KeepAlive, p.options.AckTimeout))
	})
	if err != nil {
		return nil, err
	}
	return &sender{
		link: l, clock: p.clock, metrics: p.metrics, opts: &p.options,
		spawn: p.running.Go, pool: p, wake: make(chan struct{}, 1),
	}, nil
}

// startFeed sends what next returns, until that is nil or the connection has ended. A message that was taken from next
// and not sent goes to giveBack. It ends before wait returns nil.
func (s *sender) startFeed(next func() *item, giveBack func(*item)) {
	s.mu.Lock()
	s.feeding = true
	s.mu.Unlock()
	s.spawn(func() {
		for it := next(); it != nil; it = next() {
			if !s.publish(it) {
				giveBack(it)
				break
			}
		}
		s.mu.Lock()
		s.feeding = false
		s.rouse()
		s.mu.Unlock()
	})
}

// publish sends one message. False says that the connection has ended and the message was not sent. It is entered as
// in flight first, so that it has an owner whatever happens while paho has it.
func (s *sender) publish(it *item) bool {
	if s.conn.isDead() {
		return false
	}
	now := s.clock.Now()
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return false
	}
	if s.first > len(s.flight)/2 && len(s.flight) == cap(s.flight) {
		n := copy(s.flight, s.flight[s.first:])
		clear(s.flight[n:])
		s.flight, s.first = s.flight[:n], 0
	}
	s.flight = append(s.flight, entry{item: it, no: s.nextNo, at: now})
	s.nextNo++
	again := it.sent
	it.sent = true
	s.mu.Unlock()
	if again {
		s.metrics.resends.Inc()
	}
	token := s.client.Publish(it.delivery.Topic(), 1, false, it.delivery.Payload())
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended { // else the message has been taken back already
		s.flight[len(s.flight)-1].token = token // the last one still: it cannot leave without its token
		s.rouse()
	}
	return true
}

// rouse needs s.mu.
func (s *sender) rouse() {
	if s.asleep {
		s.asleep = false
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// wait passes on acknowledgements until feeding has stopped and nothing is in flight (nil), or the connection has
// ended: then it returns the reason, and what has no PUBACK is in s.unacked.
//
// It waits for the oldest message; a sweep now and then finds those that were acknowledged out of order behind one
// that is not, so that nothing waits for that one. Deadlines rise in the order sent, so the same sweep serves them.
func (s *sender) wait(o owner) error {
	tick := s.clock.NewTicker(min(sweepInterval, s.opts.AckTimeout/4))
	defer tick.Stop()
	for {
		head, finished, err := s.collect(o)
		// Feeding also stops, with messages left unsent, because the connection has ended.
		if finished && !s.conn.isDead() {
			return nil
		}
		if err != nil {
			// Almost always the connection has failed already; else paho did not get rid of the message.
			s.conn.fail(fmt.Errorf("%w: %w", errNotSent, err))
		}
		select {
		case <-s.conn.dead:
			return s.end(o)
		case <-s.lost:
			return s.end(o)
		case <-head:
		case <-s.wake:
		case <-tick.C():
			s.sweep(o)
		}
	}
}

// collect passes on the acknowledged messages at the head of the line. It returns what the new head waits for (nil
// when there is none), whether all is done, and the error of a publish that failed.
func (s *sender) collect(o owner) (head <-chan struct{}, finished bool, failed error) {
	s.mu.Lock()
	s.done = s.done[:0]
	now := s.clock.Now()
	for ; s.first < len(s.flight); s.first++ {
		e := &s.flight[s.first]
		if e.token == nil {
			break
		}
		ok, err := state(e.token)
		failed = err
		if !ok {
			head = e.token.Done()
			break
		}
		s.pass(e, now)
		*e = entry{}
	}
	if s.first == len(s.flight) {
		s.flight, s.first = s.flight[:0], 0
		finished = !s.feeding
	}
	s.asleep = head == nil
	s.mu.Unlock()
	if len(s.done) > 0 {
		o.acked(s.done)
	}
	return head, finished, failed
}

// crowded says whether so many messages are in flight that more would get near the end of the packet identifiers.
func (s *sender) crowded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.flight)-s.first >= maxWindow
}

// state says whether the PUBACK has come, or why it will not.
func state(token paho.Token) (acked bool, err error) {
	select {
	case <-token.Done():
		err := token.Error()
		return err == nil, err
	default:
		return false, nil
	}
}

func (s *sender) pass(e *entry, now time.Time) {
	s.done = append(s.done, e.item)
	s.ackedNo = max(s.ackedNo, e.no+1)
	s.ackedAt = now
	s.metrics.publishSeconds.Observe(now.Sub(e.at).Seconds())
}

// sweep takes out what was acknowledged out of order, then looks at what is overdue.
func (s *sender) sweep(o owner) {
	now := s.clock.Now()
	var late []*item
	s.mu.Lock()
	s.done = s.done[:0]
	s.keep(func(e *entry) bool {
		if e.token == nil {
			return true
		}
		ok, _ := state(e.token)
		if ok {
			s.pass(e, now)
		}
		return !ok
	})
	stuck := false
	s.keep(func(e *entry) bool {
		if s.pool.ageing(e.item, now) {
			s.pool.freeSlot(e.item)
		}
		if now.Sub(e.at) < s.opts.AckTimeout {
			return true
		}
		if e.no < s.ackedNo && e.token != nil {
			// Its PUBACK may have come after the look above, just before that of a later one.
			if ok, _ := state(e.token); ok {
				s.pass(e, now)
			} else {
				late = append(late, e.item)
			}
			return false
		}
		// Nothing that was sent after it has been acknowledged. A broker that is behind gets on with what is before
		// it; sending all of that again would only make things worse.
		stuck = stuck || now.Sub(s.ackedAt) >= s.opts.AckTimeout
		return true
	})
	s.mu.Unlock()
	if len(s.done) > 0 {
		o.acked(s.done)
	}
	for _, it := range late {
		o.overdue(it)
	}
	s.late += len(late)
	if stuck {
		s.conn.fail(errAckTimeout)
	}
	if s.late >= maxOverdue {
		s.conn.fail(errTooManyLate)
	}
}

// keep drops the entries that f does not keep. It needs s.mu.
func (s *sender) keep(f func(*entry) bool) {
	kept := s.flight[:s.first]
	for i := s.first; i < len(s.flight); i++ {
		if f(&s.flight[i]) {
			kept = append(kept, s.flight[i])
		}
	}
	clear(s.flight[len(kept):])
	s.flight = kept
}

// end takes everything back from a connection that is over. It waits for paho to have gone through the PUBACKs it has
// read; should that fail to end, nothing is wrong but that some messages are sent again.
func (s *sender) end(o owner) error {
	timer := s.clock.NewTimer(s.opts.WriteTimeout + closeTimeout)
	defer timer.Stop()
	s.conn.fail(errGivenUp)
	cause := s.conn.cause()
	select {
	case <-s.lost:
	case <-timer.C():
		s.spawn(func() { s.client.Disconnect(disconnectTimeout) })
	}
	s.unhook()
	now := s.clock.Now()
	s.mu.Lock()
	s.ended = true
	s.done, s.unacked = s.done[:0], nil
	for i := s.first; i < len(s.flight); i++ {
		e := &s.flight[i]
		if e.token != nil {
			if ok, _ := state(e.token); ok {
				s.pass(e, now)
				continue
			}
		}
		s.unacked = append(s.unacked, e.item)
	}
	s.flight, s.first = nil, 0
	s.mu.Unlock()
	if len(s.done) > 0 {
		o.acked(s.done)
	}
	s.metrics.losses.Inc()
	return cause
}

// close ends a connection that has nothing in flight.
func (s *sender) close() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.disconnect()
}

// roundTrip asks the broker for an answer that has no effect: UNSUBACK for a subscription that never was. It tells
// whether the broker serves this connection.
func (s *sender) roundTrip() error {
	_, err := s.await(s.clock, s.opts.ConnectTimeout, s.spawn, func() paho.Token {
		return s.client.Unsubscribe("batchtask/health/" + s.id)
	})
	if err != nil {
		return fmt.Errorf("round trip: %w", err)
	}
	return nil
}

// brokerDropped says whether a connection ended by the broker's doing, as far as one can see from here: it was closed
// or reset, neither by us nor by a network that went silent.
func brokerDropped(cause error) bool {
	for _, own := range []error{errAckTimeout, errTooManyLate, errNotSent, errGivenUp, errShutdown, errWriteTimeout, net.ErrClosed} {
		if errors.Is(cause, own) {
			return false
		}
	}
	var network net.Error
	return !errors.As(cause, &network) || !network.Timeout()
}

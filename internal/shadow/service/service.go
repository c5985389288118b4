// Package service answers devices that ask for their shadow or report to it, over
// MQTT: what comes on $shadow/operation/{productID}/{deviceName} is carried out and
// answered on $shadow/operation/result/{productID}/{deviceName}.
//
// Messages of one device are carried out in the order in which the broker sent them,
// those of different devices side by side: fairly among products and their devices, and
// none takes what others need; see queue.go, turns.go and trouble.go. A message of QoS 1 is acknowledged after
// its shadow was stored and its answer handed to the connection, so nothing of it is
// lost when the service dies in between; the next one gets it again. Then the message
// may be carried out twice, which raises the version twice and changes no value.
package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/mqtt"
	"batchtask.dev/operator/internal/shadow"
)

// Defaults of Options.
const (
	DefaultClientID     = "batchtask-shadow"
	DefaultWorkers      = 128
	DefaultQueueLength  = 8000
	DefaultRate         = 30
	DefaultBurst        = 60
	DefaultRetryTime    = 10 * time.Second
	DefaultDrainTimeout = 10 * time.Second
)

const (
	// lookupTimeout bounds the look for a product while nothing is read from the
	// connection. It is one into a cache.
	lookupTimeout = 100 * time.Millisecond
	// refusalLogEvery is the pause between two entries of the log about a full queue.
	refusalLogEvery = 10 * time.Second
)

// Products tells which namespace a product ID belongs to.
type Products interface {
	// Namespace returns the namespace, and "" where the ID is nobody's. Errors are
	// passing.
	Namespace(ctx context.Context, productID string) (string, error)
}

// Store is where the shadows are; what the methods do, [fleet.Store] says. A call must
// return when its ctx ends.
type Store interface {
	ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error)
	ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error
}

// Options are the settings of a Service. The zero value of a field stands for its
// default.
type Options struct {
	// MQTT says how to reach the broker; see mqtt.SubscriberOptions for what of it
	// counts. Its Clock and Log are the service's too.
	MQTT mqtt.Options
	// ClientID names the session at the broker. Of two services with one ID only one
	// can be connected. batchtask-shadow.
	ClientID string
	// SharedGroup subscribes as one of a group among which the broker divides the
	// messages; each member needs a ClientID of its own. Messages of one device that
	// come to different members have no order. Empty is no group.
	SharedGroup string

	// Workers is how many messages are carried out at the same time, at least 1; of one
	// namespace an eighth of it, and at least 1. 128.
	Workers int
	// QueueLength is how many messages may be held, at least 1. One takes a place for each
	// 4 KiB begun, so that this bounds memory too. Of several namespaces none has more than
	// an eighth, and no device more than a 128th: what is over that is refused with 5100.
	// While there is only one, nothing more is read from the broker at so many. 8000.
	QueueLength int
	// Rate and Burst are how many messages a second a device may send, and how many at
	// once. What is over that is dropped. 30 and 60.
	Rate  float64
	Burst int
	// RetryTime is how long a message may take while the store fails and is asked again;
	// then the device gets an error. A product whose store has failed for that long is
	// away: its devices get the error at once, until the store answers again. It should
	// stay below KeepAlive. 10 s.
	RetryTime time.Duration
	// DrainTimeout is how long a service that ends carries out what it has read. 10 s.
	DrainTimeout time.Duration

	// Metrics are counted on; not shown anywhere when nil.
	Metrics *Metrics
}

func (o *Options) setDefaults() {
	o.ClientID = cmp.Or(o.ClientID, DefaultClientID)
	o.Workers = cmp.Or(o.Workers, DefaultWorkers)
	o.QueueLength = cmp.Or(o.QueueLength, DefaultQueueLength)
	o.Rate = cmp.Or(o.Rate, DefaultRate)
	o.Burst = cmp.Or(o.Burst, DefaultBurst)
	o.RetryTime = cmp.Or(o.RetryTime, DefaultRetryTime)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, DefaultDrainTimeout)
	if o.MQTT.Clock == nil {
		o.MQTT.Clock = clock.RealClock{}
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
}

// validate returns the first fault found, named by its field.
func (o *Options) validate() error {
	switch {
	case o.Workers < 1:
		return fmt.Errorf("the option Workers is %d, must be at least 1", o.Workers)
	case o.QueueLength < 1:
		return fmt.Errorf("the option QueueLength is %d, must be at least 1", o.QueueLength)
	case !(o.Rate > 0):
		return fmt.Errorf("the option Rate is %v, must be more than 0", o.Rate)
	case o.Burst < 1:
		return fmt.Errorf("the option Burst is %d, must be at least 1", o.Burst)
	case o.RetryTime < 0 || o.DrainTimeout < 0:
		return errors.New("the options RetryTime and DrainTimeout must not be negative")
	}
	for _, c := range o.SharedGroup {
		if c == '/' || c == '+' || c == '#' || c <= ' ' || c > '~' {
			return errors.New("the option SharedGroup has a character that a group cannot have: /, +, #, a space, or one beyond ASCII")
		}
	}
	return nil
}

// Service answers devices. Make it with New.
type Service struct {
	options    Options
	store      Store
	products   Products
	subscriber *mqtt.Subscriber
	queue      *queue
	// For receive alone, which is called once at a time.
	limiter       *limiter
	connection    <-chan struct{} // closed when it is lost
	refusalLogged time.Time

	working context.Context // of all lines; ends when the service gives up what it holds
	lines   sync.WaitGroup
	clock   clock.WithTicker
	log     logr.Logger
	metrics *Metrics
}

// New makes a service that does nothing yet. It returns an error that names the
// option that is wrong.
func New(store Store, products Products, opts Options) (*Service, error) {
	opts.setDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	s := &Service{
		options: opts, store: store, products: products, limiter: newLimiter(opts.Rate, opts.Burst),
		queue: newQueue(opts.QueueLength, opts.Workers, opts.MQTT.Clock),
		clock: opts.MQTT.Clock, log: opts.MQTT.Log, metrics: opts.Metrics,
	}
	s.queue.awayAfter = opts.RetryTime
	topics := filter
	if opts.SharedGroup != "" {
		topics = "$share/" + opts.SharedGroup + "/" + filter
	}
	var err error
	s.subscriber, err = mqtt.NewSubscriber(mqtt.SubscriberOptions{
		Options: opts.MQTT, ClientID: opts.ClientID, Filter: topics, Receive: s.receive,
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Connected says whether messages can come.
func (s *Service) Connected() bool { return s.subscriber.Connected() }

// Start answers devices until ctx ends. Then it takes no more messages, carries out
// those that it has read, for DrainTimeout at the most, and closes the connection.
// What it did not acknowledge, the broker sends to whoever connects next with the
// ClientID. A service can be started once.
func (s *Service) Start(ctx context.Context) error {
	// Both outlive ctx by the time it takes to finish.
	connected, disconnect := context.WithCancel(context.WithoutCancel(ctx))
	defer disconnect()
	working, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()

	s.working = working
	var watch sync.WaitGroup
	watch.Go(func() { s.watch(working) })
	subscribed := make(chan error, 1)
	go func() { subscribed <- s.subscriber.Start(connected) }()

	<-ctx.Done()
	s.queue.close()
	timer := s.clock.NewTimer(s.options.DrainTimeout)
	defer timer.Stop()
	select {
	case <-s.queue.empty:
	case <-timer.C():
		s.log.Info("Ended before all messages were answered", "messages", s.queue.held())
	}
	abandon()
	watch.Wait()
	s.lines.Wait() // nothing is taken any more, so none is added
	disconnect()
	return <-subscribed
}

// watch looks at what takes long, until ctx ends.
func (s *Service) watch(ctx context.Context) {
	tick := s.clock.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
		for _, n := range s.queue.tick(s.subscriber.HeldUp()) {
			log := s.log.WithValues("product", n.productID, "namespace", n.namespace)
			if n.away {
				log.Error(n.err, "The store of a product has failed for too long; its devices get an error at once until it answers again", "after", s.options.RetryTime.String())
			} else {
				log.Info("The store of a product is tried again with each message")
			}
		}
	}
}

// receive takes a message from the connection. While only one tenant has messages it
// holds up the connection where there is no room for them.
func (s *Service) receive(m *mqtt.Inbound) {
	d, ok := parseTopic(m.Topic())
	reason := ""
	now := s.clock.Now()
	if m.Lost() != s.connection {
		s.connection = m.Lost()
		s.limiter.connect(now)
	}
	switch {
	case !ok:
		reason = dropTopic
	case m.Retained():
		// Nobody has sent it just now: the broker had kept it, and would send it again
		// with each subscription.
		reason = dropRetained
	case !s.limiter.allow(d, now):
		reason = dropRate
	default:
		s.enqueue(d, m)
		return
	}
	s.metrics.dropped.WithLabelValues(reason).Inc()
	m.Ack()
}

// enqueue puts a message into the queue. What the queue refuses is answered here: that
// takes no worker.
func (s *Service) enqueue(d device, m *mqtt.Inbound) {
	namespace := ""
	if !s.queue.knows(d.productID) {
		// Whose it is says who is charged, no more: where it cannot be told now, all such
		// are one tenant.
		ctx, cancel := context.WithTimeout(s.working, lookupTimeout)
		namespace, _ = s.products.Namespace(ctx, d.productID)
		cancel()
	}
	l, v, reason := s.queue.put(d, namespace, &job{message: m}, m.Lost())
	switch v {
	case gone:
		// What is not taken is not acknowledged either.
	case refused:
		s.refuse(d, m, reason)
	case heldFirst:
		s.metrics.queueDepth.Inc()
		s.lines.Go(func() { s.serve(l) })
	case held:
		s.metrics.queueDepth.Inc()
	}
}

// refuse tells a device that its message is not carried out.
func (s *Service) refuse(d device, m *mqtt.Inbound, reason string) {
	s.metrics.refused.WithLabelValues(reason).Inc()
	s.reply(d, m, shadow.Addressee(m.Payload()), s.clock.Now(), shadow.ResultInternal, nil)
	if reason == refusedAway {
		if s.queue.mayProbe(d.productID) {
			s.lines.Go(func() { s.probe(d) })
		}
		return
	}
	if now := s.clock.Now(); now.Sub(s.refusalLogged) >= refusalLogEvery {
		s.refusalLogged = now
		s.log.Info("Refused a message because its device or namespace has its share of the queue; --queue-length sets how long the queue is, and "+MetricRefused+" counts what is refused",
			"product", d.productID, "device", d.name, "share", reason, "queueLength", s.options.QueueLength)
	}
}

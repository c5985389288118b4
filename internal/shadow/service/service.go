// Package service answers devices that ask for their shadow or report to it, over
// MQTT: what comes on $shadow/operation/{productID}/{deviceName} is carried out and
// answered on $shadow/operation/result/{productID}/{deviceName}.
//
// Messages of one device are carried out in the order in which the broker sent them,
// those of different devices side by side. A message of QoS 1 is acknowledged after
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
	DefaultWorkers      = 16
	DefaultQueueLength  = 1000
	DefaultRate         = 30
	DefaultBurst        = 60
	DefaultRetryTime    = 10 * time.Second
	DefaultDrainTimeout = 10 * time.Second
)

// Products tells which namespace a product ID belongs to.
type Products interface {
	// Namespace returns the namespace, and "" where the ID is nobody's. Errors are
	// passing.
	Namespace(ctx context.Context, productID string) (string, error)
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

	// Workers is how many messages are carried out at the same time, at least 1. 16.
	Workers int
	// QueueLength is how many messages may be held, at least 1; while there are so many,
	// nothing more is read from the broker. A message that is too large takes the room of
	// several, so that this bounds memory too. 1000.
	QueueLength int
	// Rate and Burst are how many messages a second a device may send, and how many at
	// once. What is over that is dropped. 30 and 60.
	Rate  float64
	Burst int
	// RetryTime is how long a message may take while the store fails and is asked again;
	// then the device gets an error. It should stay below KeepAlive: while all workers wait, nothing is sent to
	// the broker. 10 s.
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
	store      fleet.Store
	products   Products
	subscriber *mqtt.Subscriber
	queue      *queue
	// For receive alone, which is called once at a time.
	limiter    *limiter
	connection <-chan struct{} // closed when it is lost
	clock      clock.WithTicker
	log        logr.Logger
	metrics    *Metrics
}

// job is a message of a device.
type job struct {
	message *mqtt.Inbound
	bytes   int // of the payload
	arrived time.Time
}

// New makes a service that does nothing yet. It returns an error that names the
// option that is wrong.
func New(store fleet.Store, products Products, opts Options) (*Service, error) {
	opts.setDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	s := &Service{
		options: opts, store: store, products: products, queue: newQueue(opts.QueueLength), limiter: newLimiter(opts.Rate, opts.Burst),
		clock: opts.MQTT.Clock, log: opts.MQTT.Log, metrics: opts.Metrics,
	}
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

	var workers sync.WaitGroup
	for range s.options.Workers {
		workers.Go(func() { s.work(working) })
	}
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
	workers.Wait()
	disconnect()
	return <-subscribed
}

// receive takes a message from the connection, and holds up the connection while
// there is no room for it.
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
		// What is not taken is not acknowledged either.
		if s.queue.put(d, job{m, len(m.Payload()), now}, m.Lost()) {
			s.metrics.queueDepth.Inc()
		}
		return
	}
	s.metrics.dropped.WithLabelValues(reason).Inc()
	m.Ack()
}

// work carries out messages until ctx ends.
func (s *Service) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case l := <-s.queue.ready:
			s.carryOut(ctx, l.device, s.queue.first(l))
			s.queue.done(l)
			s.metrics.queueDepth.Dec()
		}
	}
}

func (s *Service) carryOut(ctx context.Context, d device, j job) {
	log := s.log.WithValues("product", d.productID, "device", d.name)
	limited, cancel := context.WithTimeout(ctx, s.options.RetryTime)
	defer cancel()
	message, err := shadow.ParseMessage(j.message.Payload())
	var answer []byte
	var result shadow.Result
	if err != nil {
		answer, result, err = s.failure(message, err)
	} else {
		answer, result, err = s.answer(limited, d, message)
	}
	switch {
	case result == shadow.ResultInternal && ctx.Err() != nil:
		return // the service has ended, and the fault is its own
	case result == shadow.ResultInternal:
		log.Error(err, "Cannot serve a device")
	case result != shadow.ResultOK:
		// Not the error: it names keys of the message.
		log.V(1).Info("Refused a message", "result", result)
	}
	s.metrics.answered(message, result, s.clock.Since(j.arrived).Seconds())
	if err := j.message.Reply(d.resultTopic(), answer); err != nil {
		s.metrics.answersLost.Inc()
		log.V(1).Info("Lost an answer", "reason", err.Error())
		return
	}
	j.message.Ack()
}

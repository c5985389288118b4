package mqtt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/go-logr/logr"
)

// neverPingTimeout takes the watch over the connection from paho, which would count the time during which nothing is
// read because Receive blocks; see Subscriber.connect.
const neverPingTimeout = 365 * 24 * time.Hour

// refusedSubscription is the return code of a SUBACK for a filter that is not granted (MQTT 3.1.1, 3.9.3).
const refusedSubscription = 0x80

// SubscriberOptions say what a Subscriber listens to, and how it reaches the broker.
type SubscriberOptions struct {
	// Options, of which ClientIDPrefix, Connections, Window, MaxPayloadBytes and AckTimeout have no meaning here.
	Options
	// ClientID names the session at the broker, which keeps messages of QoS 1 there while no connection is up. Of two
	// clients with one ID the broker keeps the later. Required; printable ASCII, at most 64 characters.
	ClientID string
	// Filter is the topic filter to subscribe to, with QoS 1. Required.
	Filter string
	// Receive is called with one message after the other, in the order of arrival. While it blocks, nothing more is read
	// from the broker. It must return soon after m.Lost() is closed. Required.
	Receive func(m *Inbound)
}

// Subscriber keeps one connection with one subscription. Its session is not a clean one: the broker keeps messages of
// QoS 1 while the connection is down, and sends again what was not acknowledged. Make it with NewSubscriber.
type Subscriber struct {
	options SubscriberOptions
	files   files
	log     logr.Logger
	up      atomic.Bool
	acks    atomic.Pointer[ackLine] // of the last connection
	running sync.WaitGroup
}

// NewSubscriber makes a subscriber that is not connected yet. It returns an error that names the option that is wrong.
func NewSubscriber(opts SubscriberOptions) (*Subscriber, error) {
	to, err := parseURL(opts.URL)
	if err != nil {
		return nil, fmt.Errorf("mqtt options: %w", err)
	}
	opts.setDefaults()
	if err := opts.validate(to); err != nil {
		return nil, fmt.Errorf("mqtt options: %w", err)
	}
	switch {
	case opts.ClientID == "" || len(opts.ClientID) > maxClientIDPrefix || !printableASCII(opts.ClientID):
		return nil, fmt.Errorf("mqtt options: ClientID is %q, must be 1 to %d printable ASCII characters", opts.ClientID, maxClientIDPrefix)
	case opts.Filter == "":
		return nil, errors.New("mqtt options: Filter is empty")
	case opts.Receive == nil:
		return nil, errors.New("mqtt options: Receive is nil")
	}
	opts.URL = "" // it may hold a password
	s := &Subscriber{options: opts, log: opts.Log.WithValues("broker", to.url.Scheme+"://"+to.url.Host, "clientID", opts.ClientID)}
	s.files = files{options: &s.options.Options, target: to, shorten: maxInboundBytes}
	return s, nil
}

// Connected says whether the connection is up and the subscription granted.
func (s *Subscriber) Connected() bool { return s.up.Load() }

// HeldUp is how many messages of the connection were acknowledged, and wait for a message before them that was not:
// the broker gets acknowledgements in the order of the messages.
func (s *Subscriber) HeldUp() int {
	if acks := s.acks.Load(); acks != nil {
		return int(acks.heldUp.Load())
	}
	return 0
}

// Start keeps the connection until ctx ends, and then closes it. What was not acknowledged by then, the broker sends
// again to the next connection with this ClientID.
func (s *Subscriber) Start(ctx context.Context) error {
	defer s.running.Wait()
	var pause backoff
	for ctx.Err() == nil {
		l, err := s.connect(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Error(err, "Cannot subscribe")
				s.sleep(ctx, pause.next())
			}
			continue
		}
		s.up.Store(true)
		s.options.Metrics.connected.Inc()
		s.log.V(1).Info("Subscribed", "filter", s.options.Filter)
		err = s.serve(ctx, l)
		s.up.Store(false)
		s.options.Metrics.connected.Dec()
		if err == nil {
			continue
		}
		s.options.Metrics.losses.Inc()
		s.log.Info("Connection lost", "reason", err.Error())
		if s.options.Clock.Since(l.since) >= time.Second {
			pause = backoff{} // it did work, so try at once
			continue
		}
		s.sleep(ctx, pause.next())
	}
	return nil
}

// connect makes a connection with the subscription. It survives ctx, so that it can be closed in an orderly way; the
// attempt does not.
func (s *Subscriber) connect(ctx context.Context) (*link, error) {
	connCtx, cut := context.WithCancel(context.WithoutCancel(ctx))
	attempt := context.AfterFunc(ctx, cut)
	defer attempt()
	acks := &ackLine{}
	s.acks.Store(acks)
	var l *link
	ready := make(chan struct{}) // closed when l is set, or never will be
	opened, err := s.files.open(connCtx, s.options.ClientID, func(o *paho.ClientOptions) {
		o.SetCleanSession(false).SetOrderMatters(true).SetAutoAckDisabled(true)
		o.SetPingTimeout(neverPingTimeout)
		// Not the handler of the subscription: in a session that goes on, messages come before it is renewed.
		o.SetDefaultPublishHandler(func(_ paho.Client, message paho.Message) {
			if <-ready; l == nil {
				return
			}
			s.options.Receive(&Inbound{message: message, link: l, ack: acks.add(message, l.conn)})
		})
	})
	l = opened
	close(ready)
	if err != nil {
		cut()
		return nil, err
	}
	// Ended with the connection, whoever ends it.
	s.running.Go(func() { <-l.conn.dead; cut() })
	// A broker that is there sends something within each interval of KeepAlive, if only the answer to a PINGREQ. This
	// time runs while a Read waits, so not while Receive blocks.
	l.conn.silence.Store(int64(2 * s.options.KeepAlive))
	if err := s.subscribe(l); err != nil {
		s.end(l)
		return nil, err
	}
	return l, nil
}

func (s *Subscriber) subscribe(l *link) error {
	token, err := l.await(s.options.Clock, s.options.ConnectTimeout, s.running.Go, func() paho.Token {
		return l.client.Subscribe(s.options.Filter, 1, nil)
	})
	if err != nil {
		return fmt.Errorf("subscribing to %s: %w", s.options.Filter, err)
	}
	for _, code := range token.(*paho.SubscribeToken).Result() {
		if code == refusedSubscription {
			return fmt.Errorf("subscribing to %s: the broker refuses it", s.options.Filter)
		}
	}
	return nil
}

// serve waits until the connection has ended, and returns why; or until ctx has, or other files are to be used, and
// closes it (nil).
func (s *Subscriber) serve(ctx context.Context, l *link) error {
	tick := s.options.Clock.NewTicker(s.options.FileCheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.end(l)
			return nil
		case <-l.conn.dead:
			cause := l.conn.cause()
			s.end(l)
			return cause
		case <-l.lost:
			l.conn.fail(errGivenUp)
		case <-tick.C():
			a, err := s.files.read()
			switch {
			case err != nil:
				s.log.Error(err, "Cannot check the connection settings")
			case a.fingerprint != l.files:
				s.log.Info("Connection settings have changed, renewing the connection")
				s.end(l)
				return nil
			}
		}
	}
}

// end closes the connection, and waits for paho to be done with it.
func (s *Subscriber) end(l *link) {
	if !l.conn.isDead() {
		l.disconnect()
		return
	}
	defer l.unhook()
	timer := s.options.Clock.NewTimer(s.options.WriteTimeout + closeTimeout)
	defer timer.Stop()
	select {
	case <-l.lost:
	case <-timer.C():
		s.running.Go(func() { l.client.Disconnect(disconnectTimeout) })
	}
}

func (s *Subscriber) sleep(ctx context.Context, d time.Duration) {
	timer := s.options.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C():
	}
}

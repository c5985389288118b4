package simulator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

const (
	qos            = 1
	connectTimeout = 15 * time.Second
	keepAlive      = 60 * time.Second
	refused        = 0x80 // return code of SUBACK (MQTT 3.1.1 section 3.9.3)
)

// device is one simulated device.
type device struct {
	fleet   *Fleet
	client  paho.Client
	filters map[string]byte
	ready   chan error // the outcome of the first subscription
	keep    int

	mu    sync.Mutex
	count int64
	last  []Message
}

func newDevice(fleet *Fleet, opts Options, name, clientID string) *device {
	d := &device{fleet: fleet, keep: opts.Keep, ready: make(chan error, 1), filters: map[string]byte{
		"$shadow/operation/result/" + opts.ProductID + "/" + name: qos,
	}}
	for _, topic := range opts.Topics {
		d.filters[opts.ProductID+"/"+name+"/"+topic] = qos
	}
	settings := paho.NewClientOptions().
		AddBroker(opts.BrokerURL).
		SetClientID(clientID).
		SetCleanSession(true).
		SetConnectTimeout(connectTimeout).
		SetKeepAlive(keepAlive).
		SetMaxReconnectInterval(10 * time.Second).
		// A clean session forgets its subscriptions, so each connection makes them.
		SetOnConnectHandler(d.subscribe).
		SetDefaultPublishHandler(d.receive)
	d.client = paho.NewClient(settings)
	return d
}

// connect returns when the device is connected and subscribed.
func (d *device) connect(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := wait(ctx, d.client.Connect()); err != nil {
		return err
	}
	select {
	case err := <-d.ready:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (d *device) close() {
	const forPendingAcks = 100 // milliseconds
	d.client.Disconnect(forPendingAcks)
}

func (d *device) subscribe(client paho.Client) {
	token := client.SubscribeMultiple(d.filters, nil)
	err := error(nil)
	if !token.WaitTimeout(connectTimeout) {
		err = errors.New("the broker does not answer a subscription")
	} else if err = token.Error(); err == nil {
		err = granted(token)
	}
	select {
	case d.ready <- err:
	default: // Not the first subscription: no one waits for it.
	}
}

// granted tells whether the broker took every filter.
func granted(token paho.Token) error {
	for filter, code := range token.(*paho.SubscribeToken).Result() {
		if code == refused {
			return fmt.Errorf("the broker refused the subscription to %s", filter)
		}
	}
	return nil
}

func (d *device) receive(_ paho.Client, message paho.Message) {
	d.mu.Lock()
	if len(d.last) == d.keep {
		copy(d.last, d.last[1:])
		d.last = d.last[:d.keep-1]
	}
	d.last = append(d.last, Message{Topic: message.Topic(), Payload: string(message.Payload())})
	d.count++
	d.mu.Unlock()
	d.fleet.total.Add(1)
}

func wait(ctx context.Context, token paho.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

package simulator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"batchtask.dev/operator/internal/shadow"
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

	answers string  // the topic of what comes about the shadow
	keeper  *keeper // nil for a device that only counts
	running sync.WaitGroup

	mu    sync.Mutex
	count int64
	last  []Message
}

func newDevice(fleet *Fleet, opts Options, name, clientID string, keepsShadow bool) *device {
	address := opts.ProductID + "/" + name
	d := &device{fleet: fleet, keep: opts.Keep, ready: make(chan error, 1), answers: shadow.ResultTopic(opts.ProductID, name)}
	if keepsShadow {
		d.keeper = newKeeper(shadow.OperationPrefix+address, d.publish, clientID, opts)
	}
	d.filters = map[string]byte{d.answers: qos}
	for _, topic := range opts.Topics {
		d.filters[address+"/"+topic] = qos
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
	if d.keeper != nil {
		d.running.Go(d.keeper.run)
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
	if d.keeper != nil {
		d.keeper.end()
		d.running.Wait()
	}
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
	if err == nil && d.keeper != nil {
		d.keeper.connected()
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
	if d.keeper != nil && message.Topic() == d.answers && !d.keeper.hear(d.answers, message.Payload()) {
		return
	}
	d.mu.Lock()
	d.last = keepLast(d.last, Message{Topic: message.Topic(), Payload: string(message.Payload())}, d.keep)
	d.count++
	d.fleet.total.Add(1) // under the lock: whoever sees the one sees the other
	d.mu.Unlock()
}

// publish sends what may be lost: the answer tells.
func (d *device) publish(topic string, payload []byte) { d.client.Publish(topic, 0, false, payload) }

// keepLast appends a message, and drops the first where there are n already.
func keepLast(messages []Message, m Message, n int) []Message {
	if len(messages) == n {
		messages = append(messages[:0], messages[1:]...)
	}
	return append(messages, m)
}

func wait(ctx context.Context, token paho.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

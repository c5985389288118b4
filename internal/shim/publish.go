package shim

import (
	"context"
	"errors"
	"fmt"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/mqtt"
)

// Publisher sends messages to devices; a [*mqtt.Pool] is one.
type Publisher interface {
	// Publish takes a message; see [mqtt.Pool.Publish].
	Publish(ctx context.Context, d mqtt.Delivery) error
}

// message is one message of a call on its way to the broker.
type message struct {
	ctx     context.Context // Live asks it; the message lives as long as its call
	product fleet.Product
	topic   string
	payload []byte
	settled chan error
}

var _ mqtt.Delivery = (*message)(nil)

// Source is the product, so that a message that makes the broker hang up delays no
// other product's.
func (m *message) Source() mqtt.Source {
	return mqtt.Source{Tenant: m.product.Namespace, Product: m.product.ProductID}
}

// Topic is the whole MQTT topic.
func (m *message) Topic() string { return m.topic }

// Payload is the content.
func (m *message) Payload() []byte { return m.payload }

// Live reports whether the call still waits.
func (m *message) Live() bool { return m.ctx.Err() == nil }

// Settle takes the result.
func (m *message) Settle(err error) { m.settled <- err }

// publish returns nil once the broker has acknowledged the message. After an error
// the broker may have it all the same.
func publish(ctx context.Context, publisher Publisher, product fleet.Product, topic string, payload []byte) error {
	m := &message{ctx: ctx, product: product, topic: topic, payload: payload, settled: make(chan error, 1)}
	err := publisher.Publish(ctx, m)
	if err == nil {
		select {
		case err = <-m.settled:
		case <-ctx.Done():
			err = errors.Join(ctx.Err(), errors.New("the broker has not acknowledged the message"))
		}
	}
	if err != nil {
		return fmt.Errorf("publishing to %s: %w", topic, err)
	}
	return nil
}

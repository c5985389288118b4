package mqtt

import (
	"fmt"
	"sync"
	"sync/atomic"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// Inbound is a message that came on a subscription.
type Inbound struct {
	message paho.Message
	link    *link
	acks    *ackLine

	acked bool // guarded by acks.mu
}

// Topic is the topic that it was published to.
func (m *Inbound) Topic() string { return m.message.Topic() }

// Payload is its content, of a message of more than 1 MiB the beginning. It must not be changed.
func (m *Inbound) Payload() []byte { return m.message.Payload() }

// Retained says that the broker had kept the message, so that nobody has sent it just now.
func (m *Inbound) Retained() bool { return m.message.Retained() }

// Lost is closed when the connection has ended on which the message came. Ack and Reply have no effect then, and the
// broker sends a message of QoS 1 again that was not acknowledged.
func (m *Inbound) Lost() <-chan struct{} { return m.link.conn.dead }

// Ack acknowledges a message of QoS 1. It may be called in any order: the broker gets the acknowledgements in the order
// of the messages (MQTT 3.1.1, 4.6), each once those before it are due, so that what it sends again after a lost
// connection is the end of what it has sent. It may block for a moment, until the acknowledgement can be written.
func (m *Inbound) Ack() { m.acks.settle(m) }

// Reply publishes with QoS 0 on the connection on which the message came. Without an error the bytes stand before those
// of any later Ack; whether the broker gets them shows in nothing else.
func (m *Inbound) Reply(topic string, payload []byte) error {
	if m.link.conn.isDead() {
		return fmt.Errorf("replying: %w", m.link.conn.cause())
	}
	token := m.link.client.Publish(topic, 0, false, payload)
	select {
	case <-token.Done():
	case <-m.link.conn.dead: // the token may never complete, see the package comment
		return fmt.Errorf("replying: %w", m.link.conn.cause())
	}
	if err := token.Error(); err != nil {
		// Almost always the connection has failed already.
		m.link.conn.fail(fmt.Errorf("%w: %w", errNotSent, err))
		return fmt.Errorf("replying: %w", err)
	}
	return nil
}

// ackLine holds the messages of QoS 1 of a connection that are not acknowledged yet, in the order of arrival.
type ackLine struct {
	mu      sync.Mutex
	waiting []*Inbound
	// heldUp is how many of waiting are acked, but for those before them.
	heldUp atomic.Int64
}

func (l *ackLine) add(m *Inbound) {
	if m.message.Qos() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, m)
}

func (l *ackLine) settle(m *Inbound) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.acked || m.message.Qos() == 0 {
		return
	}
	m.acked = true
	l.heldUp.Add(1)
	for len(l.waiting) > 0 && l.waiting[0].acked {
		l.waiting[0].message.Ack()
		l.waiting[0] = nil
		l.waiting = l.waiting[1:]
		l.heldUp.Add(-1)
	}
}

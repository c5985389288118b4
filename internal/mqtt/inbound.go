package mqtt

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// Inbound is a message that came on a subscription.
type Inbound struct {
	message paho.Message
	link    *link
	ack     *pendingAck // nil for QoS 0
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
func (m *Inbound) Ack() {
	if m.ack != nil {
		m.ack.line.settle(m.ack)
	}
}

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

// ackLine holds the messages of QoS 1 of a connection that are not acknowledged yet, in the order of arrival. Of those
// that are done it keeps no more than the identifier: a broker may send 65,535 before it waits for an acknowledgement.
// That is why the acknowledgements are not paho's, which hold the whole message.
type ackLine struct {
	mu      sync.Mutex
	waiting []*pendingAck
	// heldUp is how many of waiting are done, but for those before them.
	heldUp atomic.Int64
}

// pendingAck is the acknowledgement that a message is due.
type pendingAck struct {
	line *ackLine
	conn io.Writer
	id   uint16
	done bool // guarded by line.mu
}

// add returns the place in the line of a message that came on conn.
func (l *ackLine) add(message paho.Message, conn io.Writer) *pendingAck {
	if message.Qos() == 0 {
		return nil
	}
	a := &pendingAck{line: l, conn: conn, id: message.MessageID()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, a)
	return a
}

// settle writes the acknowledgements that are due now. Where the connection has failed there is nobody to tell.
func (l *ackLine) settle(a *pendingAck) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.done {
		return
	}
	a.done = true
	l.heldUp.Add(1)
	var due []byte
	for len(l.waiting) > 0 && l.waiting[0].done {
		const puback = 0x40                                                           // MQTT 3.1.1, 3.4
		due = append(due, puback, 2, byte(l.waiting[0].id>>8), byte(l.waiting[0].id)) //nolint:gosec // its two bytes
		l.waiting[0] = nil
		l.waiting = l.waiting[1:]
		l.heldUp.Add(-1)
	}
	if len(due) > 0 {
		_, _ = a.conn.Write(due)
	}
}

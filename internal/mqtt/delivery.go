package mqtt

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Results of a delivery other than nil, and errors of Publish.
var (
	// ErrRejected says that the broker ended the connection each time it was sent this message alone, while it
	// served the same connection well just before and the next one just after.
	ErrRejected = errors.New("broker ends the connection when it is sent this message")
	// ErrAbandoned says that nobody waited any longer (Delivery.Live) or the pool was closed before a PUBACK came.
	// The broker may have the message all the same.
	ErrAbandoned = errors.New("message abandoned before its acknowledgement")
	// ErrInvalidMessage says that MQTT cannot carry the message.
	ErrInvalidMessage = errors.New("invalid message")
	// ErrClosed is returned by Publish once the pool has been closed.
	ErrClosed = errors.New("mqtt pool is closed")
)

// maxTopicBytes is the longest UTF-8 string MQTT can carry (MQTT 3.1.1 section 1.5.3). paho cuts longer ones without a word.
const maxTopicBytes = 65535

// Source says where a message comes from. When the broker drops a connection, what was in flight on it is told apart
// by that: nobody suffers for what another has sent.
type Source struct {
	// Tenant is whom the product belongs to, such as a namespace.
	Tenant string
	// Product is what falls under suspicion as a whole: a product ID, which access lists of brokers tell apart.
	Product string
	// Task tells the tasks of a product apart, which take turns while it is under suspicion. It must be comparable;
	// nil is one like any other.
	Task any
}

// origin is what falls under suspicion as a whole.
type origin struct{ tenant, product string }

func (s Source) origin() origin { return origin{s.Tenant, s.Product} }

// Delivery is one message on its way to the broker with QoS 1. Its methods are called from several goroutines, though
// never two at once, and must not block.
type Delivery interface {
	// Source says where the message comes from. It does not change.
	Source() Source
	// Topic is the full topic name.
	Topic() string
	// Payload must not change until Settle was called, nor shortly after: a message that is settled as abandoned may
	// still be on its way out.
	Payload() []byte
	// Live is false once nobody waits for the result. The message is not sent (again) after that and is settled
	// within about a second, unless it is in flight; then after its PUBACK or the end of its connection.
	Live() bool
	// Settle is called exactly once for a message that Publish took: with nil after the broker's PUBACK, else with an
	// error that wraps ErrRejected, ErrAbandoned or ErrInvalidMessage. It may be called before Publish returns.
	Settle(err error)
}

// item is a Delivery inside the pool. It is always in exactly one place: a queue, a lane, or in the hands of one
// connection; whoever holds it may settle it or pass it on.
type item struct {
	delivery Delivery
	source   Source
	// seq orders messages by age.
	seq uint64
	// suspect: it was in flight on a connection that the broker dropped. Guarded by quarantine.mu.
	suspect bool
	// sent: it was handed to a connection before.
	sent bool
	// at is when Publish took it; slot is whether it has a place of the window, see Pool.freeSlot.
	at   time.Time
	slot atomic.Bool
	// inBatch is for the goroutine of the lane that is sending the item.
	inBatch bool
}

// validate checks what MQTT 3.1.1 sections 1.5.3 and 4.7 demand of a topic name, and the size of the payload.
func validate(topic string, payload []byte, maxPayload int) error {
	switch {
	case topic == "":
		return fmt.Errorf("%w: the topic is empty", ErrInvalidMessage)
	case len(topic) > maxTopicBytes:
		return fmt.Errorf("%w: the topic has %d bytes, at most %d are possible", ErrInvalidMessage, len(topic), maxTopicBytes)
	case strings.ContainsAny(topic, "+#"):
		return fmt.Errorf("%w: the topic has a wildcard", ErrInvalidMessage)
	case strings.ContainsRune(topic, 0):
		return fmt.Errorf("%w: the topic has a NUL character", ErrInvalidMessage)
	case !utf8.ValidString(topic):
		return fmt.Errorf("%w: the topic is not UTF-8", ErrInvalidMessage)
	case len(payload) > maxPayload:
		return fmt.Errorf("%w: the payload has %d bytes, at most %d are allowed", ErrInvalidMessage, len(payload), maxPayload)
	}
	return nil
}

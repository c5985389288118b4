package mqtttest

import (
	"bufio"
	"bytes"
	"context"
	"maps"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Faults say what a FaultBroker does wrong. The zero value does nothing wrong.
type Faults struct {
	// Ignore names topics whose messages are taken but never acknowledged.
	Ignore func(topic string) bool
	// Drop names topics whose messages make the broker close the connection without acknowledging them.
	Drop func(topic string) bool
	// DropAfter closes each connection at its n-th message, unacknowledged; 0 is never.
	DropAfter int
	// AcksPerSecond bounds acknowledgements over all connections; 0 is no bound.
	AcksPerSecond int
	// StopReading makes the broker read nothing any more, connections staying open, once they are established.
	StopReading bool
	// RefuseConnect answers CONNECT with the return code for an unavailable server.
	RefuseConnect bool
	// RefuseSubscribe answers SUBSCRIBE with the return code for a failure.
	RefuseSubscribe bool
	// IgnoreUnsubscribe leaves UNSUBSCRIBE without an answer.
	IgnoreUnsubscribe bool
}

// All names every topic.
func All(string) bool { return true }

// Credentials are those of a CONNECT.
type Credentials struct{ ClientID, Username, Password string }

// FaultBroker is a broker that takes messages and delivers none. It is a fake only to inject faults; what a real broker
// can show is tested with StartMosquitto.
type FaultBroker struct {
	t        testing.TB
	listener net.Listener
	ended    chan struct{}
	running  sync.WaitGroup

	mu        sync.Mutex
	faults    Faults
	published map[string]int
	connects  []Credentials
	conns     map[net.Conn]struct{}
	nextAck   time.Time
}

// NewFaultBroker runs a broker on a free port of 127.0.0.1 until the test ends.
func NewFaultBroker(t testing.TB, faults Faults) *FaultBroker {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.WithoutCancel(t.Context()), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("starting the fault broker: %v", err)
	}
	b := &FaultBroker{
		t: t, listener: l, ended: make(chan struct{}), faults: faults,
		published: map[string]int{}, conns: map[net.Conn]struct{}{},
	}
	b.running.Go(b.accept)
	t.Cleanup(func() {
		close(b.ended)
		_ = l.Close()
		b.DropAll()
		b.running.Wait()
	})
	return b
}

// URL is the broker's URL.
func (b *FaultBroker) URL() string { return "tcp://" + b.listener.Addr().String() }

// SetFaults replaces the faults, for connections that exist as well.
func (b *FaultBroker) SetFaults(f Faults) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = f
}

// Published counts the messages received, by topic.
func (b *FaultBroker) Published() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.published)
}

// Connects lists the CONNECTs that were accepted, in order.
func (b *FaultBroker) Connects() []Credentials {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Credentials(nil), b.connects...)
}

// DropAll closes every connection.
func (b *FaultBroker) DropAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		_ = c.Close()
	}
}

func (b *FaultBroker) accept() {
	for {
		conn, err := b.listener.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.conns[conn] = struct{}{}
		b.mu.Unlock()
		select {
		case <-b.ended:
			_ = conn.Close() // it came too late for the last DropAll
		default:
		}
		b.running.Go(func() {
			b.serve(conn)
			_ = conn.Close()
			b.mu.Lock()
			delete(b.conns, conn)
			b.mu.Unlock()
		})
	}
}

func (b *FaultBroker) currentFaults() Faults {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.faults
}

// serve returns when the connection is to be closed.
func (b *FaultBroker) serve(conn net.Conn) {
	r := bufio.NewReader(conn)
	count := 0
	for {
		packet, err := packets.ReadPacket(r)
		if err != nil {
			return
		}
		faults := b.currentFaults()
		var answer packets.ControlPacket
		switch p := packet.(type) {
		case *packets.ConnectPacket:
			ack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
			if faults.RefuseConnect {
				ack.ReturnCode = packets.ErrRefusedServerUnavailable
			} else {
				b.mu.Lock()
				b.connects = append(b.connects, Credentials{p.ClientIdentifier, p.Username, string(p.Password)})
				b.mu.Unlock()
			}
			answer = ack
		case *packets.PingreqPacket:
			answer = packets.NewControlPacket(packets.Pingresp)
		case *packets.SubscribePacket:
			ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
			ack.MessageID, ack.ReturnCodes = p.MessageID, make([]byte, len(p.Topics))
			if faults.RefuseSubscribe {
				ack.ReturnCodes = bytes.Repeat([]byte{0x80}, len(p.Topics))
			}
			answer = ack
		case *packets.UnsubscribePacket:
			if faults.IgnoreUnsubscribe {
				continue
			}
			ack := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
			ack.MessageID = p.MessageID
			answer = ack
		case *packets.PublishPacket:
			count++
			var drop bool
			if answer, drop = b.publish(p, faults, count); drop {
				return
			}
		case *packets.DisconnectPacket:
			return
		}
		if answer != nil && answer.Write(conn) != nil {
			return
		}
		if b.currentFaults().StopReading {
			<-b.ended
			return
		}
	}
}

// publish records a message and returns its PUBACK, nil for none, or that the connection is to be closed.
func (b *FaultBroker) publish(p *packets.PublishPacket, faults Faults, count int) (packets.ControlPacket, bool) {
	b.mu.Lock()
	b.published[p.TopicName]++
	b.mu.Unlock()
	switch {
	case faults.Drop != nil && faults.Drop(p.TopicName), faults.DropAfter > 0 && count >= faults.DropAfter:
		return nil, true
	case faults.Ignore != nil && faults.Ignore(p.TopicName), p.Qos == 0:
		return nil, false
	}
	if faults.AcksPerSecond > 0 {
		b.waitForTurn(time.Second / time.Duration(faults.AcksPerSecond))
	}
	ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	ack.MessageID = p.MessageID
	return ack, false
}

func (b *FaultBroker) waitForTurn(interval time.Duration) {
	b.mu.Lock()
	now := time.Now()
	if b.nextAck.Before(now) {
		b.nextAck = now
	}
	b.nextAck = b.nextAck.Add(interval)
	wait := b.nextAck.Sub(now)
	b.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.ended:
	}
}

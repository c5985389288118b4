package e2e

import (
	"bufio"
	"context"
	"io"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// tap stands between the manager and a broker and writes down the evidence: which
// messages went to the broker, and for which the broker's PUBACK came back. It can
// slow the acknowledgements down, so that a task lasts long enough to be killed.
type tap struct {
	broker   string
	listener net.Listener
	pace     time.Duration // between two acknowledgements
	running  sync.WaitGroup

	mu        sync.Mutex
	published map[string]int
	acked     map[string]int
	conns     map[net.Conn]struct{}
	nextAck   time.Time
}

func newTap(t *testing.T, brokerURL string, acksPerSecond int) *tap {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.WithoutCancel(t.Context()), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{
		broker: strings.TrimPrefix(brokerURL, "tcp://"), listener: l, pace: time.Second / time.Duration(acksPerSecond),
		published: map[string]int{}, acked: map[string]int{}, conns: map[net.Conn]struct{}{},
	}
	p.running.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.running.Wait()
	})
	return p
}

func (p *tap) url() string { return "tcp://" + p.listener.Addr().String() }

// evidence returns how often each topic was published and acknowledged.
func (p *tap) evidence() (published, acked map[string]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.published), maps.Clone(p.acked)
}

func (p *tap) sent() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, times := range p.published {
		n += times
	}
	return n
}

func (p *tap) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.relay(client) })
	}
}

func (p *tap) relay(client net.Conn) {
	defer client.Close()
	broker, err := net.Dial("tcp", p.broker)
	if err != nil {
		return
	}
	defer broker.Close()
	p.mu.Lock()
	p.conns[client], p.conns[broker] = struct{}{}, struct{}{}
	p.mu.Unlock()

	var mu sync.Mutex
	topics := map[uint16]string{} // of this connection's messages on their way
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer broker.Close()
		copyPackets(client, broker, func(packet packets.ControlPacket) {
			if m, ok := packet.(*packets.PublishPacket); ok {
				mu.Lock()
				topics[m.MessageID] = m.TopicName
				mu.Unlock()
				p.mu.Lock()
				p.published[m.TopicName]++
				p.mu.Unlock()
			}
		})
	}()
	copyPackets(broker, client, func(packet packets.ControlPacket) {
		if m, ok := packet.(*packets.PubackPacket); ok {
			p.wait()
			mu.Lock()
			topic := topics[m.MessageID]
			mu.Unlock()
			p.mu.Lock()
			p.acked[topic]++
			p.mu.Unlock()
		}
	})
	_ = client.Close()
	<-done
}

func copyPackets(from io.Reader, to io.Writer, see func(packets.ControlPacket)) {
	r := bufio.NewReader(from)
	for {
		packet, err := packets.ReadPacket(r)
		if err != nil {
			return
		}
		see(packet)
		if packet.Write(to) != nil {
			return
		}
	}
}

func (p *tap) wait() {
	p.mu.Lock()
	now := time.Now()
	if p.nextAck.Before(now) {
		p.nextAck = now
	}
	p.nextAck = p.nextAck.Add(p.pace)
	d := p.nextAck.Sub(now)
	p.mu.Unlock()
	<-time.After(d)
}

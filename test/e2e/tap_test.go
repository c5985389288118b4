package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// tap stands between the manager and a broker and writes down the evidence: which
// messages went to the broker, and for which the manager got the broker's PUBACK. It
// can hold acknowledgements back, so that a task is certainly in its middle when
// something happens to it, however fast the machine is.
type tap struct {
	broker   string
	listener net.Listener
	running  sync.WaitGroup

	mu        sync.Mutex
	published map[string]int
	acked     map[string]int
	conns     map[net.Conn]struct{}
	held      []heldAck // in the order that they came in
	passed    int       // acknowledgements that were passed on
	limit     int       // how many may be
}

// heldAck is an acknowledgement on its way to the manager.
type heldAck struct {
	client net.Conn
	packet packets.ControlPacket
	topic  string
}

// newTap runs a tap in front of a broker until the test ends. It holds nothing back
// until letPass is called.
func newTap(t *testing.T, brokerURL string) *tap {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.WithoutCancel(t.Context()), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{
		broker: strings.TrimPrefix(brokerURL, "tcp://"), listener: l, limit: math.MaxInt,
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

// letPass passes on n acknowledgements in all, those included that have passed, and
// holds the others back. A manager that gets no more of them is soon at a standstill.
func (p *tap) letPass(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = n
	p.pass()
}

// letMorePass passes on up to n more acknowledgements, but no more than most in all.
func (p *tap) letMorePass(n, most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = min(p.passed+n, most)
	p.pass()
}

// letAllPass holds nothing back any more.
func (p *tap) letAllPass() { p.letPass(math.MaxInt) }

// evidence returns how often each topic was published and acknowledged.
func (p *tap) evidence() (published, acked map[string]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.published), maps.Clone(p.acked)
}

// devices returns of how many topics an acknowledgement has passed.
func (p *tap) devices() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.acked)
}

// await waits until n acknowledgements have passed.
func (p *tap) await(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d acknowledgements", n), func() (bool, string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.passed >= n, fmt.Sprintf("%d of at most %d have passed", p.passed, p.limit)
	})
}

// awaitHeld waits until an acknowledgement is held back, as there are messages on their
// way.
func (p *tap) awaitHeld(t *testing.T) {
	t.Helper()
	eventually(t, "messages on their way", func() (bool, string) { return p.heldBack() > 0, "" })
}

// awaitLost waits until none is: the connections have ended that they came on.
func (p *tap) awaitLost(t *testing.T) {
	t.Helper()
	eventually(t, "acknowledgements to be lost", func() (bool, string) { return p.heldBack() == 0, "" })
}

func (p *tap) heldBack() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.held)
}

// killAt kills the manager when so many acknowledgements have passed, at each of the
// moments, and starts another. It has messages on their way then, and goes on with
// what no more than half a window of further acknowledgements allow: a task over more
// devices than that is certainly in its middle.
func (p *tap) killAt(t *testing.T, m *process, moments []int, window int, flags ...string) {
	t.Helper()
	for _, moment := range moments {
		p.letPass(moment)
		p.await(t, moment)
		p.awaitHeld(t)
		p.letPass(moment + window/2)
		m.kill()
		m = startManager(t, p.url(), flags...)
	}
	p.letAllPass()
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

	topics := map[uint16]string{} // of this connection's messages on their way; guarded by p.mu
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer broker.Close()
		eachPacket(client, func(packet packets.ControlPacket) error {
			if m, ok := packet.(*packets.PublishPacket); ok {
				p.mu.Lock()
				topics[m.MessageID] = m.TopicName
				p.published[m.TopicName]++
				p.mu.Unlock()
			}
			return packet.Write(broker)
		})
	}()
	eachPacket(broker, func(packet packets.ControlPacket) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		m, ok := packet.(*packets.PubackPacket)
		if !ok { // such as the answer to a ping, which no message delays
			return packet.Write(client)
		}
		p.held = append(p.held, heldAck{client, packet, topics[m.MessageID]})
		p.pass()
		return nil
	})
	_ = client.Close()
	<-done
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = slices.DeleteFunc(p.held, func(ack heldAck) bool { return ack.client == client })
}

// pass passes on what may pass. It needs p.mu.
func (p *tap) pass() {
	for len(p.held) > 0 && p.passed < p.limit {
		ack := p.held[0]
		p.held = p.held[1:]
		if ack.packet.Write(ack.client) == nil { // else the manager has left
			p.passed++
			p.acked[ack.topic]++
		}
	}
}

// eachPacket reads packets until the connection or see fails.
func eachPacket(from io.Reader, see func(packets.ControlPacket) error) {
	r := bufio.NewReader(from)
	for {
		packet, err := packets.ReadPacket(r)
		if err != nil || see(packet) != nil {
			return
		}
	}
}

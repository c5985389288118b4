package mqtt

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/go-logr/logr/testr"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// message is a Delivery that remembers how it was settled.
type message struct {
	source  string // the product
	tenant  string
	task    any
	topic   string
	payload []byte
	dead    *atomic.Bool // shared by a group; nil lives for ever

	settled atomic.Int32
	err     error // to be read after settled
	group   *group
}

func (m *message) Source() Source  { return Source{Tenant: m.tenant, Product: m.source, Task: m.task} }
func (m *message) Topic() string   { return m.topic }
func (m *message) Payload() []byte { return m.payload }
func (m *message) Live() bool      { return m.dead == nil || !m.dead.Load() }
func (m *message) Settle(err error) {
	m.err = err
	m.settled.Add(1)
	m.group.done.Done()
}

// group is a set of messages published together.
type group struct {
	messages []*message
	done     sync.WaitGroup
}

// newGroup makes n messages of a source to its topics source/0, source/1, ….
func newGroup(source string, n int) *group {
	g := &group{}
	for i := range n {
		g.add(&message{source: source, topic: fmt.Sprintf("%s/%d", source, i), payload: []byte("x")})
	}
	return g
}

func (g *group) add(m *message) {
	m.group = g
	g.done.Add(1)
	g.messages = append(g.messages, m)
}

func (g *group) mortal() *atomic.Bool {
	dead := &atomic.Bool{}
	for _, m := range g.messages {
		m.dead = dead
	}
	return dead
}

func (g *group) publish(t testing.TB, p *Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for _, m := range g.messages {
		if err := p.Publish(ctx, m); err != nil {
			t.Errorf("publishing to %s: %v", m.topic, err)
			return
		}
	}
}

// settledCount counts the messages that have a result.
func (g *group) settledCount() int {
	n := 0
	for _, m := range g.messages {
		if m.settled.Load() > 0 {
			n++
		}
	}
	return n
}

// await waits until every message is settled and fails the test when one was settled more than once.
func (g *group) await(t testing.TB, within time.Duration) {
	t.Helper()
	all := make(chan struct{})
	go func() { g.done.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(within):
		t.Fatalf("only %d of %d messages are settled after %v", g.settledCount(), len(g.messages), within)
	}
	for _, m := range g.messages {
		if n := m.settled.Load(); n != 1 {
			t.Errorf("message to %s was settled %d times", m.topic, n)
		}
	}
}

// results counts the messages by what they were settled with.
func (g *group) results(t testing.TB, within time.Duration) map[error]int {
	t.Helper()
	g.await(t, within)
	counts := map[error]int{}
	for _, m := range g.messages {
		counts[kind(m.err)]++
	}
	return counts
}

func (g *group) wantAllAcked(t testing.TB, within time.Duration) {
	t.Helper()
	g.await(t, within)
	for _, m := range g.messages {
		if m.err != nil {
			t.Fatalf("message to %s was settled with: %v", m.topic, m.err)
		}
	}
}

func startPool(t testing.TB, opts Options) *Pool {
	t.Helper()
	if opts.WriteTimeout == 0 {
		opts.WriteTimeout = 2 * time.Second // a connection that was lost may keep a goroutine for twice as long
	}
	if tt, ok := t.(*testing.T); ok && testing.Verbose() {
		opts.Log = testr.New(tt)
	}
	p, err := New(opts)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	run(t, p)
	return p
}

// run starts the pool, and closes it when the test ends.
func run(t testing.TB, p *Pool) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- p.Start(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Start: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// subscriber counts what a broker delivers, by topic.
type subscriber struct {
	mu     sync.Mutex
	counts map[string]int
	total  int
}

// subscribe receives everything until the test ends, over a connection that comes back after each restart.
func subscribe(t testing.TB, url string) *subscriber {
	t.Helper()
	s := &subscriber{counts: map[string]int{}}
	subscribed := make(chan struct{}, 100)
	o := paho.NewClientOptions().AddBroker(url).SetClientID("subscriber").SetOrderMatters(true).
		SetMaxReconnectInterval(10 * time.Millisecond).SetConnectRetry(true).SetConnectRetryInterval(10 * time.Millisecond)
	o.SetOnConnectHandler(func(c paho.Client) {
		if token := c.Subscribe("#", 1, s.receive); token.Wait() && token.Error() == nil {
			subscribed <- struct{}{}
		}
	})
	c := paho.NewClient(o)
	c.Connect()
	t.Cleanup(func() { c.Disconnect(100) })
	select {
	case <-subscribed:
	case <-time.After(time.Minute):
		t.Fatal("the subscriber did not get a connection")
	}
	return s
}

func (s *subscriber) receive(_ paho.Client, m paho.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[m.Topic()]++
	s.total++
}

func (s *subscriber) sum() (topics, total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.counts), s.total
}

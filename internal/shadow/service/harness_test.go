package service

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/go-logr/logr/testr"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/testenv"
)

// The control plane is started by the one test that asks for it; goroutines that are
// left over fail the package.
func TestMain(m *testing.M) { testenv.Main(m) }

// patience is how long a test waits for what must happen, on a busy machine.
const patience = time.Minute

// product is that of the devices in memory.
var product = fleet.Product{Namespace: "here", ProductID: "ABCDE12345"}

// owners says which namespace a product ID belongs to.
type owners map[string]string

func (o owners) Namespace(_ context.Context, productID string) (string, error) {
	return o[productID], nil
}

// memory is a store with devices of the product.
func memory(t *testing.T, names ...string) *fleettest.Memory {
	t.Helper()
	store := fleettest.NewMemory()
	for _, name := range names {
		store.Create(t, product, fleettest.Device{Name: name})
	}
	return store
}

// running is a service that runs.
type running struct {
	*Service
	stop func() // ends it and waits
}

// start runs a service until the test ends, and waits until messages can come.
func start(t *testing.T, url string, store Store, opts Options) *running {
	t.Helper()
	return startWith(t, url, store, owners{product.ProductID: product.Namespace}, opts)
}

// startLenient is start for a test that holds calls up and wants no other call to be told
// of it.
func startLenient(t *testing.T, url string, store Store, opts Options) *running {
	t.Helper()
	return startAfter(t, url, store, owners{product.ProductID: product.Namespace}, opts, func(s *Service) { s.queue.slowAfter = time.Hour })
}

func startWith(t *testing.T, url string, store Store, products Products, opts Options) *running {
	t.Helper()
	return startAfter(t, url, store, products, opts, func(*Service) {})
}

func startAfter(t *testing.T, url string, store Store, products Products, opts Options, prepare func(*Service)) *running {
	t.Helper()
	r := &running{}
	opts.MQTT.URL = url
	// What ends by time in production does not here, unless the test says so: a busy
	// machine stops anything for seconds.
	opts.MQTT.WriteTimeout = cmp.Or(opts.MQTT.WriteTimeout, patience)
	opts.RetryTime = cmp.Or(opts.RetryTime, patience)
	opts.DrainTimeout = cmp.Or(opts.DrainTimeout, patience)
	if testing.Verbose() {
		opts.MQTT.Log = testr.New(t)
	}
	if opts.Rate == 0 {
		opts.Rate, opts.Burst = 1e6, 1e6
	}
	var err error
	if r.Service, err = New(store, products, opts); err != nil {
		t.Fatal(err)
	}
	prepare(r.Service)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- r.Start(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Start: %v", err)
		}
	})
	t.Cleanup(r.stop)
	eventually(t, "the service is connected", r.Connected)
	return r
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

// tap stands between the service and a broker, and counts what the service sends. The
// broker does not expect anything in an interval of KeepAlive: how long the service
// stays silent is up to the test.
type tap struct {
	url                   string
	broker                string
	running               sync.WaitGroup
	connects, pings, acks atomic.Int64
	open                  atomic.Int64 // connections to the broker that it has not closed
}

// startTap runs a tap until the test ends.
func startTap(t *testing.T, brokerURL string) *tap {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.WithoutCancel(t.Context()), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{url: "tcp://" + l.Addr().String(), broker: strings.TrimPrefix(brokerURL, "tcp://")}
	p.running.Go(func() {
		for {
			service, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.serve(service) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.running.Wait()
	})
	return p
}

// settled waits until the broker has read all that a service has sent that was
// stopped. Otherwise the next one of the same ClientID might take the session over
// before, and get again what was acknowledged.
func (p *tap) settled(t *testing.T) {
	t.Helper()
	eventually(t, "the broker has read all", func() bool { return p.open.Load() == 0 })
}

func (p *tap) serve(service net.Conn) {
	defer func() { _ = service.Close() }()
	conn, err := new(net.Dialer).Dial("tcp", p.broker)
	if err != nil {
		return
	}
	broker := conn.(*net.TCPConn)
	defer func() { _ = broker.Close() }()
	p.open.Add(1)
	closed := make(chan struct{})
	p.running.Go(func() {
		defer close(closed)
		_, _ = io.Copy(service, broker)
		_ = service.Close()
		_, _ = io.Copy(io.Discard, broker)
		p.open.Add(-1)
	})
	// The broker closes its side when it has read everything.
	defer func() {
		_ = broker.CloseWrite()
		<-closed
	}()
	for {
		packet, err := packets.ReadPacket(service)
		if err != nil {
			return
		}
		switch packet := packet.(type) {
		case *packets.ConnectPacket:
			p.connects.Add(1)
			packet.Keepalive = 0
		case *packets.PingreqPacket:
			p.pings.Add(1)
		}
		if packet.Write(broker) != nil {
			return
		}
		if _, ok := packet.(*packets.PubackPacket); ok {
			p.acks.Add(1)
		}
	}
}

// client is a connection over which devices talk. One that is lost is made anew, with
// a paho client of its own: paho's reconnecting, while messages are published, is a
// source of races and of messages sent twice.
type client struct {
	t   *testing.T
	url string
	id  string
	qos byte
	// writeTimeout is how long the broker may take no bytes, and how long paho may wait
	// for its turn on a connection that has just died.
	writeTimeout time.Duration

	running sync.WaitGroup
	mu      sync.Mutex
	closed  bool
	paho    paho.Client
	answers map[string]chan string // by topic
}

func connect(t *testing.T, url, id string, qos byte) *client {
	t.Helper()
	return connectWith(t, url, id, qos, patience)
}

func connectWith(t *testing.T, url, id string, qos byte, writeTimeout time.Duration) *client {
	t.Helper()
	c := &client{t: t, url: url, id: id, qos: qos, writeTimeout: writeTimeout, answers: map[string]chan string{}}
	if err := c.dial(); err != nil {
		t.Fatalf("connecting the devices: %v", err)
	}
	t.Cleanup(func() {
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
		c.running.Wait()
		c.current().Disconnect(100)
	})
	return c
}

// dial makes a connection that can be used at once.
func (c *client) dial() error {
	o := paho.NewClientOptions().AddBroker(c.url).SetClientID(c.id).SetAutoReconnect(false).SetWriteTimeout(c.writeTimeout).SetPingTimeout(patience)
	o.SetConnectionLostHandler(func(paho.Client, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.closed {
			c.running.Go(c.redial)
		}
	})
	p := paho.NewClient(o)
	for _, step := range []func() paho.Token{p.Connect, func() paho.Token { return p.Subscribe(shadow.ResultPrefix+"+/+", 0, c.receive) }} {
		token := step()
		if !token.WaitTimeout(patience) {
			return errors.New("no answer of the broker")
		}
		if token.Error() != nil {
			return token.Error()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paho = p
	return nil
}

func (c *client) redial() {
	for c.dial() != nil {
		c.mu.Lock()
		closed := c.closed
		c.mu.Unlock()
		if closed {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (c *client) current() paho.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paho
}

func (c *client) on(topic string) chan string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answers[topic] == nil {
		c.answers[topic] = make(chan string, 1000)
	}
	return c.answers[topic]
}

func (c *client) receive(_ paho.Client, m paho.Message) {
	select {
	case c.on(m.Topic()) <- string(m.Payload()):
	default:
		c.t.Errorf("nobody reads the answers on %s", m.Topic())
	}
}

// send publishes a message of a device; with QoS 1 it waits for the PUBACK.
func (c *client) send(name, payload string) {
	c.t.Helper()
	c.sendTo(device{product.ProductID, name}.topic(), payload)
}

func (c *client) sendTo(topic, payload string) {
	c.t.Helper()
	if token := c.current().Publish(topic, c.qos, false, payload); !token.WaitTimeout(patience) || token.Error() != nil {
		c.t.Errorf("publishing to %s: %v", topic, token.Error())
	}
}

func (d device) topic() string { return shadow.OperationPrefix + d.productID + "/" + d.name }

// answer returns the next answer to a device.
func (c *client) answer(name string) string {
	c.t.Helper()
	answer, err := c.next(name, patience)
	if err != nil {
		c.t.Errorf("device %s: %v", name, err)
	}
	return answer
}

var errNoAnswer = errors.New("no answer came")

func (c *client) next(name string, within time.Duration) (string, error) {
	select {
	case answer := <-c.on(device{product.ProductID, name}.resultTopic()):
		return answer, nil
	case <-time.After(within):
		return "", errNoAnswer
	}
}

// ask sends a message and returns the answer.
func (c *client) ask(name, payload string) string {
	c.t.Helper()
	c.send(name, payload)
	return c.answer(name)
}

// answered is what tests look at in an answer.
type answered struct {
	Result  int `json:"result"`
	Payload struct {
		Version int64 `json:"version"`
	} `json:"payload"`
	ClientToken json.RawMessage `json:"clientToken"`
}

func parse(t *testing.T, answer string) answered {
	t.Helper()
	var a answered
	if err := json.Unmarshal([]byte(answer), &a); err != nil {
		t.Errorf("the answer %q is no JSON: %v", answer, err)
	}
	return a
}

// hear subscribes to filters and returns what gives the topics on which messages
// came, separated by spaces.
func (c *client) hear(filters ...string) func() string {
	c.t.Helper()
	var mu sync.Mutex
	var topics strings.Builder
	for _, filter := range filters {
		token := c.current().Subscribe(filter, 1, func(_ paho.Client, m paho.Message) {
			mu.Lock()
			topics.WriteString(m.Topic() + " ")
			mu.Unlock()
			if strings.HasPrefix(m.Topic(), shadow.ResultPrefix) {
				c.receive(nil, m)
			}
		})
		if !token.WaitTimeout(patience) {
			c.t.Fatalf("subscribing to %s: no answer", filter)
		}
	}
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return topics.String()
	}
}

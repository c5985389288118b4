package service

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	"batchtask.dev/operator/internal/shadow"
)

var (
	seconds = regexp.MustCompile(`"timestamp":1[78]\d{8}\b`)
	millis  = regexp.MustCompile(`"timestamp":1[78]\d{11}\b`)
)

// timeless replaces the times of this year, which the service has put in.
func timeless(answer string) string {
	return seconds.ReplaceAllString(millis.ReplaceAllString(answer, `"timestamp":MS`), `"timestamp":S`)
}

// One device, from its first words to its acknowledgement.
func TestConversation(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	store := memory(t, "d")
	start(t, broker.URL(), store, Options{})
	for _, qos := range []byte{0, 1} {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			store.Create(t, product, fleettest.Device{Name: "d"})
			c := connect(t, broker.URL(), fmt.Sprint("devices-", qos), qos)
			apply := func(version int64) {
				t.Helper()
				patch, err := shadow.ParseDesired(`{"state":"open","n":9007199254740993}`)
				if err != nil {
					t.Fatal(err)
				}
				u := fleet.DesiredUpdate{TaskUID: "task", Patch: patch, Now: time.UnixMilli(1600000000123)}
				want := fmt.Sprintf(`{"type":"delta","timestamp":1600000000,"payload":{"state":{"n":9007199254740993,"state":"open"},"metadata":`+
					`{"n":{"timestamp":1600000000123},"state":{"timestamp":1600000000123}},"version":%d,"timestamp":1600000000123}}`, version)
				if got := store.ApplyDesired(t.Context(), product, u, []string{"d"})[0]; got.Err != nil || string(got.Delta) != want {
					t.Errorf("delta %s (error %v), want %s", got.Delta, got.Err, want)
				}
			}
			for _, step := range []struct {
				before     func()
				sent, want string
			}{
				{nil, `{"type":"get","clientToken":"t-0"}`, `{"type":"get","result":0,"timestamp":S,"clientToken":"t-0","payload":{"state":{"reported":{}},"metadata":{"reported":{}},"version":0,"timestamp":0}}`},
				{
					nil, `{"type":"update","state":{"reported":{"state":"closed","n":1}},"version":0,"clientToken":5551}`,
					`{"type":"update","result":0,"timestamp":S,"clientToken":5551,"payload":{"state":{"reported":{"n":1,"state":"closed"}},` +
						`"metadata":{"reported":{"n":{"timestamp":MS},"state":{"timestamp":MS}}},"version":1,"timestamp":MS}}`,
				},
				{
					func() { apply(2) }, `{"type":"get","clientToken":"t-1"}`,
					`{"type":"get","result":0,"timestamp":S,"clientToken":"t-1","payload":{"state":{"delta":{"n":9007199254740993,"state":"open"},` +
						`"desired":{"n":9007199254740993,"state":"open"},"reported":{"n":1,"state":"closed"}},"metadata":{"desired":{"n":{"timestamp":1600000000123},` +
						`"state":{"timestamp":1600000000123}},"reported":{"n":{"timestamp":MS},"state":{"timestamp":MS}}},"version":2,"timestamp":1600000000123}}`,
				},
				{
					nil, `{"type":"update","state":{"reported":{"state":"ajar"}},"version":1,"clientToken":"t-2"}`,
					`{"type":"update","result":5005,"timestamp":S,"clientToken":"t-2","payload":{"state":{"delta":{"n":9007199254740993,"state":"open"},` +
						`"desired":{"n":9007199254740993,"state":"open"},"reported":{"n":1,"state":"closed"}},"metadata":{"desired":{"n":{"timestamp":1600000000123},` +
						`"state":{"timestamp":1600000000123}},"reported":{"n":{"timestamp":MS},"state":{"timestamp":MS}}},"version":2,"timestamp":1600000000123}}`,
				},
				{
					nil, `{"type":"update","state":{"reported":{"state":"open","n":null},"desired":null},"version":2,"clientToken":"t-3"}`,
					`{"type":"update","result":0,"timestamp":S,"clientToken":"t-3","payload":{"state":{"desired":null,"reported":{"n":null,"state":"open"}},` +
						`"metadata":{"reported":{"n":{"timestamp":MS},"state":{"timestamp":MS}}},"version":3,"timestamp":MS}}`,
				},
				{
					nil, `{"type":"update","state":{"desired":null},"clientToken":"t-4"}`,
					`{"type":"update","result":0,"timestamp":S,"clientToken":"t-4","payload":{"state":{"desired":null},"metadata":{},"version":4,"timestamp":MS}}`,
				},
				{
					nil, `{"type":"get"}`,
					`{"type":"get","result":0,"timestamp":S,"payload":{"state":{"reported":{"state":"open"}},"metadata":{"reported":{"state":{"timestamp":MS}}},"version":4,"timestamp":MS}}`,
				},
			} {
				if step.before != nil {
					step.before()
				}
				if diff := cmp.Diff(step.want, timeless(c.ask("d", step.sent))); diff != "" {
					t.Errorf("answer to %s (-want +got):\n%s", step.sent, diff)
				}
			}
		})
	}
}

// What is not a message that can be carried out is answered with its number, changes
// nothing, and harms nobody.
func TestWrongMessages(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	store := memory(t, "d")
	store.Create(t, product, fleettest.Device{Name: "full", Shadow: fleet.Shadow{Stored: shadow.Stored{Reported: `{"a":"` + strings.Repeat("x", 16000) + `"}`, Version: 3}}})
	store.Create(t, product, fleettest.Device{Name: "broken", Shadow: fleet.Shadow{Stored: shadow.Stored{Reported: `{"a":1,"a":2}`, Version: 3}}})
	s := start(t, broker.URL(), store, Options{})
	c := connect(t, broker.URL(), "devices", 1)
	for _, tt := range []struct {
		name, device, sent string
		want               string
	}{
		{"no JSON", "d", `door open`, `{"result":5004,"timestamp":S}`},
		{"empty", "d", ``, `{"result":5004,"timestamp":S}`},
		{"binary", "d", "\x00\x01\xff\xfe", `{"result":5004,"timestamp":S}`},
		{"no type", "d", `{"clientToken":"t"}`, `{"result":5004,"timestamp":S,"clientToken":"t"}`},
		{"two documents", "d", `{"type":"get"}{"type":"get"}`, `{"result":5004,"timestamp":S}`},
		{"state a string", "d", `{"type":"update","state":"open","clientToken":1}`, `{"type":"update","result":5004,"timestamp":S,"clientToken":1}`},
		{"version a string", "d", `{"type":"update","state":{"reported":{}},"version":"3"}`, `{"type":"update","result":5004,"timestamp":S}`},
		{"duplicate key", "d", `{"type":"update","state":{"reported":{"a":1,"a":2}},"clientToken":"t"}`, `{"type":"update","result":5003,"timestamp":S,"clientToken":"t"}`},
		{"empty key", "d", `{"type":"update","state":{"reported":{"":2}}}`, `{"type":"update","result":5003,"timestamp":S}`},
		{"desired of a device", "d", `{"type":"update","state":{"desired":{"a":1}}}`, `{"type":"update","result":5003,"timestamp":S}`},
		{"too deep", "d", `{"type":"update","state":{"reported":{"a":{"b":{"c":{"d":{"e":[]}}}}}}}`, `{"type":"update","result":5002,"timestamp":S}`},
		{"very deep", "d", strings.Repeat(`{"a":`, 4000) + `1` + strings.Repeat(`}`, 4000), `{"result":5002,"timestamp":S}`},
		{"huge", "d", strings.Repeat("x", 5<<20), `{"result":5006,"timestamp":S}`},
		{"too large with what is there", "full", `{"type":"update","state":{"reported":{"b":"` + strings.Repeat("y", 1000) + `"}}}`, `{"type":"update","result":5006,"timestamp":S}`},
		{"stored shadow unreadable", "broken", `{"type":"get","clientToken":"t"}`, `{"type":"get","result":5100,"timestamp":S,"clientToken":"t"}`},
		{"stored shadow unreadable, update", "broken", `{"type":"update","state":{"reported":{}}}`, `{"type":"update","result":5100,"timestamp":S}`},
		{"unknown device", "nobody", `{"type":"get","clientToken":"t"}`, `{"type":"get","result":5001,"timestamp":S,"clientToken":"t"}`},
		{"unknown device, update", "nobody", `{"type":"update","state":{"reported":{"a":1}}}`, `{"type":"update","result":5001,"timestamp":S}`},
	} {
		if diff := cmp.Diff(tt.want, timeless(c.ask(tt.device, tt.sent))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	stranger := device{"OTHER", "d"}
	c.sendTo(stranger.topic(), `{"type":"get","clientToken":"t"}`)
	select {
	case got := <-c.on(stranger.resultTopic()):
		if want := `{"type":"get","result":5001,"timestamp":S,"clientToken":"t"}`; timeless(got) != want {
			t.Errorf("unknown product: %s, want %s", got, want)
		}
	case <-time.After(patience):
		t.Error("no answer for an unknown product")
	}

	// These have no addressee, and end no connection.
	const illegal = 3
	for _, topic := range []string{"$shadow/operation/P-1/d", "$shadow/operation/ABCDE12345/d e", "$shadow/operation/ABCDE12345/" + strings.Repeat("d", 49)} {
		c.sendTo(topic, `{"type":"get"}`)
	}
	for _, topic := range []string{"$shadow/operation/ABCDE12345/d/e", "$shadow/operation/ABCDE12345"} { // not subscribed to
		c.sendTo(topic, `{"type":"get"}`)
	}
	eventually(t, "illegal topics are counted", func() bool {
		return testutil.ToFloat64(s.metrics.dropped.WithLabelValues(dropTopic)) == illegal
	})

	if got := parse(t, c.ask("d", `{"type":"update","state":{"reported":{"n":12345678901234567890.10}}}`)); got.Payload.Version != 1 {
		t.Errorf("version %d after one update that was right, want 1", got.Payload.Version)
	}
	if got, want := store.Shadow(t, product, "d").Reported, `{"n":12345678901234567890.10}`; got != want {
		t.Errorf("reported %s, want %s", got, want)
	}
	if got := testutil.ToFloat64(s.metrics.messages.WithLabelValues("update", "5003")); got != 3 {
		t.Errorf("%v updates with result 5003 were counted, want 3", got)
	}
}

// A retained message would come back with each connection.
func TestRetained(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	c := connect(t, broker.URL(), "devices", 1)
	if token := c.current().Publish(device{product.ProductID, "d"}.topic(), 1, true, `{"type":"get"}`); !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatal(token.Error())
	}
	s := start(t, broker.URL(), memory(t, "d"), Options{})
	eventually(t, "the retained message is dropped", func() bool {
		return testutil.ToFloat64(s.metrics.dropped.WithLabelValues(dropRetained)) == 1
	})
	c.ask("d", `{"type":"get"}`)
}

// A device that talks too much is dropped, and others go on as if it were not there.
func TestRateLimit(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	tap := startTap(t, broker.URL())
	s := start(t, tap.url, memory(t, "loud", "quiet"), Options{Rate: 0.001, Burst: 10})
	c := connect(t, broker.URL(), "devices", 1)
	for range 50 {
		c.send("loud", `{"type":"update","state":{"reported":{"a":1}}}`)
	}
	for i := range 10 {
		if got := parse(t, c.ask("quiet", `{"type":"update","state":{"reported":{"a":1}}}`)); got.Payload.Version != int64(i+1) {
			t.Errorf("version %d of the quiet device, want %d", got.Payload.Version, i+1)
		}
		if got := parse(t, c.answer("loud")); got.Payload.Version != int64(i+1) {
			t.Errorf("version %d of the loud device, want %d", got.Payload.Version, i+1)
		}
	}
	eventually(t, "the rest is counted as dropped", func() bool {
		return testutil.ToFloat64(s.metrics.dropped.WithLabelValues(dropRate)) == 40
	})
	// They were acknowledged too: the next connection does not get them again.
	eventually(t, "all are acknowledged", func() bool { return tap.acks.Load() == 60 })
	s.stop()
	tap.settled(t)
	again := start(t, broker.URL(), memory(t, "loud", "quiet"), Options{})
	c.ask("quiet", `{"type":"get"}`)
	if got := testutil.ToFloat64(again.metrics.messages.WithLabelValues("update", "0")); got != 0 {
		t.Errorf("%v updates came again", got)
	}
}

// What devices send while no service is connected is carried out when one is, also if it
// comes faster then than a device may send.
func TestBacklog(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	store := memory(t, "d")
	s := start(t, broker.URL(), store, Options{Rate: DefaultRate, Burst: DefaultBurst})
	c := connect(t, broker.URL(), "devices", 1)
	c.ask("d", `{"type":"get"}`)
	s.stop()
	const n = 500 // of 17 seconds
	for i := range n {
		c.send("d", fmt.Sprintf(`{"type":"update","state":{"reported":{"a":%d}}}`, i))
	}
	s = start(t, broker.URL(), store, Options{Rate: DefaultRate, Burst: DefaultBurst})
	eventually(t, "all are carried out", func() bool {
		return testutil.ToFloat64(s.metrics.messages.WithLabelValues("update", "0")) == n
	})
	if dropped := testutil.ToFloat64(s.metrics.dropped.WithLabelValues(dropRate)); dropped != 0 {
		t.Errorf("%v were dropped", dropped)
	}
}

var errAway = errors.New("the store is away")

// A store that fails is asked again for a while; then the device is told.
func TestStoreAway(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	store := memory(t, "d", "other")
	var faults atomic.Int32
	faults.Store(3)
	store.Fault = func(name string) error {
		if name == "d" && faults.Add(-1) >= 0 {
			return errAway
		}
		return nil
	}
	tap := startTap(t, broker.URL())
	s := start(t, tap.url, store, Options{})
	c := connect(t, broker.URL(), "devices", 1)
	if got := parse(t, c.ask("d", `{"type":"update","state":{"reported":{"a":1}}}`)); got.Result != 0 || got.Payload.Version != 1 {
		t.Errorf("result %d, version %d after a short fault, want 0 and 1", got.Result, got.Payload.Version)
	}
	// next ends the service once n messages are acknowledged, so that none comes again.
	next := func(n int64, opts Options) {
		t.Helper()
		eventually(t, "all are acknowledged", func() bool { return tap.acks.Load() == n })
		s.stop()
		tap.settled(t)
		s = start(t, tap.url, store, opts)
	}
	faults.Store(1e6)
	next(1, Options{RetryTime: 500 * time.Millisecond})
	for _, message := range []string{`{"type":"update","state":{"reported":{"a":2}},"clientToken":7}`, `{"type":"get","clientToken":7}`} {
		c.send("d", message)
		c.ask("other", `{"type":"get"}`) // not held up
		if got := parse(t, c.answer("d")); got.Result != 5100 || string(got.ClientToken) != "7" {
			t.Errorf("result %d, token %s, want 5100 and 7", got.Result, got.ClientToken)
		}
	}
	next(5, Options{}) // which has the time to read, however late it comes to it
	faults.Store(0)
	if got := parse(t, c.ask("d", `{"type":"get"}`)); got.Result != 0 || got.Payload.Version != 1 {
		t.Errorf("result %d, version %d after the fault, want 0 and 1", got.Result, got.Payload.Version)
	}
}

// lossy loses the answer to writes: they are made, and an error is returned.
type lossy struct {
	fleet.Store
	losses atomic.Int32
}

func (l *lossy) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	err := l.Store.ChangeShadow(ctx, p, name, change)
	if err == nil && l.losses.Add(-1) >= 0 {
		return errAway
	}
	return err
}

// A write whose answer is lost counts once, and is not taken for somebody else's.
func TestLostAnswerOfTheStore(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	store := &lossy{Store: memory(t, "d")}
	start(t, broker.URL(), store, Options{})
	c := connect(t, broker.URL(), "devices", 1)
	for version := range int64(5) {
		store.losses.Store(2)
		got := parse(t, c.ask("d", fmt.Sprintf(`{"type":"update","state":{"reported":{"a":1}},"version":%d}`, version)))
		if got.Result != 0 || got.Payload.Version != version+1 {
			t.Errorf("result %d, version %d, want 0 and %d", got.Result, got.Payload.Version, version+1)
		}
	}
}

// slow holds up writes until it is opened.
type slow struct {
	fleet.Store
	gate    chan struct{}
	waiting atomic.Int32
}

func (s *slow) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	select {
	case <-s.gate:
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.Store.ChangeShadow(ctx, p, name, change)
}

// While the queue is full nothing is read, not even the answer to a PINGREQ, and that
// is no reason to give the connection up; in the end all is answered, in order.
func TestBackPressure(t *testing.T) {
	const devices, each = 10, 6
	broker := mqtttest.StartMosquitto(t)
	var names []string
	for i := range devices {
		names = append(names, fmt.Sprint("d", i))
	}
	store := &slow{Store: memory(t, names...), gate: make(chan struct{})}
	opts := Options{QueueLength: 5, Workers: 4 * tenantShare, RetryTime: 5 * patience}
	// A connection on which nothing comes for twice that is given up while it is read:
	// longer than a busy machine may stop what sends.
	opts.MQTT.KeepAlive = 3 * time.Second
	tap := startTap(t, broker.URL())
	c := connect(t, broker.URL(), "devices", 0) // what a lost connection loses is gone
	s := startLenient(t, tap.url, store, opts)
	for i := range each {
		for _, name := range names {
			c.send(name, fmt.Sprintf(`{"type":"update","state":{"reported":{"i":%d}},"clientToken":%d}`, i, i))
		}
	}
	eventually(t, "all workers are held up", func() bool { return store.waiting.Load() == 4 })
	eventually(t, "the queue is full", func() bool { return s.queue.held() == 5 })
	// The answer to a PINGREQ stands behind all the messages that are not read.
	eventually(t, "a PINGREQ is sent", func() bool { return tap.pings.Load() > 0 })
	<-time.After(3 * opts.MQTT.KeepAlive)
	close(store.gate)
	for _, name := range names {
		for i := range each {
			got := parse(t, c.answer(name))
			if got.Payload.Version != int64(i+1) || string(got.ClientToken) != fmt.Sprint(i) {
				t.Fatalf("device %s: answer %d has version %d and token %s", name, i, got.Payload.Version, got.ClientToken)
			}
		}
	}
	if n := tap.connects.Load(); n != 1 {
		t.Errorf("%d connections were made, want 1", n)
	}
}

// A service that ends finishes what it has read, and leaves the rest to the next.
func TestStop(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	names := []string{"a", "b", "c"}
	memory := memory(t, names...)
	first := &slow{Store: memory, gate: make(chan struct{})}
	tap := startTap(t, broker.URL())
	s := start(t, tap.url, first, Options{Workers: 2, DrainTimeout: 300 * time.Millisecond})
	c := connect(t, broker.URL(), "devices", 1)
	for _, name := range names {
		for i := range 3 {
			c.send(name, fmt.Sprintf(`{"type":"update","state":{"reported":{"i":%d}},"clientToken":%d}`, i, i))
		}
	}
	eventually(t, "all are held", func() bool { return s.queue.held() == 9 })
	s.stop() // not drained in time: the store is held up
	if v := memory.Shadow(t, product, "a").Version; v != 0 {
		t.Errorf("version %d although the store was held up", v)
	}
	tap.settled(t)

	second := &slow{Store: memory, gate: make(chan struct{})}
	s = start(t, tap.url, second, Options{Workers: 2})
	eventually(t, "the next service has got them again", func() bool { return s.queue.held() == 9 })
	var stopped sync.WaitGroup
	stopped.Go(s.stop)
	eventually(t, "it takes no more", func() bool {
		select {
		case <-s.queue.closing:
			return true
		default:
			return false
		}
	})
	close(second.gate)
	stopped.Wait() // drained
	tap.settled(t)
	for _, name := range names {
		for i := range 3 {
			if got := parse(t, c.answer(name)); got.Payload.Version != int64(i+1) || string(got.ClientToken) != fmt.Sprint(i) {
				t.Errorf("device %s: version %d, token %s, want %d and %d", name, got.Payload.Version, got.ClientToken, i+1, i)
			}
		}
	}
	third := start(t, broker.URL(), memory, Options{})
	if got := parse(t, c.ask("a", `{"type":"get"}`)); got.Payload.Version != 3 {
		t.Errorf("version %d, want 3: nothing comes a third time", got.Payload.Version)
	}
	if n := testutil.ToFloat64(third.metrics.messages.WithLabelValues("update", "0")); n != 0 {
		t.Errorf("%v messages were not acknowledged by the service that had answered them", n)
	}
}

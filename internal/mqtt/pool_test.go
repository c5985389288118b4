package mqtt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	clocktesting "k8s.io/utils/clock/testing"

	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// kind reduces an error to the sentinel it wraps.
func kind(err error) error {
	for _, k := range []error{ErrRejected, ErrAbandoned, ErrInvalidMessage} {
		if errors.Is(err, k) {
			return k
		}
	}
	return err
}

func TestAllAcknowledged(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	sub := subscribe(t, broker.URL())
	registry := prometheus.NewRegistry()
	metrics := NewMetrics(registry)
	// A connection that is given up because this machine is slow would send messages again.
	p := startPool(t, Options{URL: broker.URL(), Metrics: metrics, WriteTimeout: time.Minute, AckTimeout: time.Minute})
	eventually(t, "both connections are up", func() bool { return testutil.ToFloat64(metrics.connected) == 2 })

	g := newGroup("task", 20000)
	g.publish(t, p)
	g.wantAllAcked(t, time.Minute)

	eventually(t, "the subscriber has every message", func() bool { topics, _ := sub.sum(); return topics == 20000 })
	if _, total := sub.sum(); total != 20000 {
		t.Errorf("subscriber got %d messages, want 20000", total)
	}
	want := `
# HELP batchtask_mqtt_connected Shared connections to the broker that are up.
# TYPE batchtask_mqtt_connected gauge
batchtask_mqtt_connected 2
# HELP batchtask_mqtt_in_flight Messages taken for publishing that have no result yet, waiting ones included.
# TYPE batchtask_mqtt_in_flight gauge
batchtask_mqtt_in_flight 0
# HELP batchtask_mqtt_resends_total Messages sent again because their connection ended before their PUBACK.
# TYPE batchtask_mqtt_resends_total counter
batchtask_mqtt_resends_total 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), MetricConnected, MetricInFlight, MetricResends); err != nil {
		t.Error(err)
	}
}

func TestBrokerKilled(t *testing.T) {
	// A subscriber would miss what the broker acknowledged and had not yet delivered when it was killed, so the
	// broker's own log says what it received.
	log := filepath.Join(t.TempDir(), "log")
	broker := mqtttest.StartMosquitto(t, mqtttest.WithConfig("log_dest file "+log, "log_type debug"))
	const messages, window, crashes = 15000, 500, 3
	p := startPool(t, Options{URL: broker.URL(), Window: window})

	g := newGroup("a", messages)
	for i := range g.messages {
		g.messages[i].source = []string{"a", "b", "c"}[i%3]
	}
	go g.publish(t, p)
	for i := range crashes {
		eventually(t, "a part has been sent", func() bool { return g.settledCount() >= (i+1)*3000 })
		broker.Kill()
		broker.Restart()
	}
	g.wantAllAcked(t, time.Minute)
	broker.Kill()

	received := map[string]int{}
	total := 0
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(`Received PUBLISH from .*'(a/[0-9]+)'`).FindAllSubmatch(data, -1) {
		received[string(match[1])]++
		total++
	}
	if len(received) != messages {
		t.Errorf("the broker received %d of %d messages, though all were settled without error", len(received), messages)
	}
	if total > messages+crashes*window {
		t.Errorf("the broker received %d messages, want at most %d and %d for each crash", total, messages, window)
	}
}

func TestConnectionsDropped(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{})
	p := startPool(t, Options{URL: broker.URL()})
	g := newGroup("task", 10000)
	go g.publish(t, p)
	for i := range 5 {
		eventually(t, "a part has been sent", func() bool { return g.settledCount() >= (i+1)*1000 })
		broker.DropAll()
	}
	g.wantAllAcked(t, time.Minute)
	missing := 0
	got := broker.Published()
	for _, m := range g.messages {
		if got[m.topic] == 0 {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d messages were settled without error, though the broker never got them", missing)
	}
}

func TestNeverAcknowledged(t *testing.T) {
	tests := []struct {
		name   string
		faults mqtttest.Faults
	}{
		{name: "reads and does not answer", faults: mqtttest.Faults{Ignore: mqtttest.All}},
		{name: "does not read", faults: mqtttest.Faults{StopReading: true}},
		{name: "refuses connections", faults: mqtttest.Faults{RefuseConnect: true}},
		{name: "drops each connection at its second message", faults: mqtttest.Faults{DropAfter: 2, Ignore: mqtttest.All}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			broker := mqtttest.NewFaultBroker(t, tt.faults)
			p := startPool(t, Options{URL: broker.URL(), AckTimeout: 100 * time.Millisecond, WriteTimeout: 100 * time.Millisecond})
			g := newGroup("task", 300)
			dead := g.mortal()
			for _, m := range g.messages {
				m.payload = make([]byte, 20000)
			}
			g.publish(t, p)
			select {
			case <-time.After(time.Second):
			case <-t.Context().Done():
			}
			if n := g.settledCount(); n > 0 {
				t.Fatalf("%d messages were settled, the first with %v", n, g.messages[0].err)
			}
			dead.Store(true)
			want := map[error]int{ErrAbandoned: 300}
			if diff := cmp.Diff(want, g.results(t, time.Minute), cmpopts.EquateErrors()); diff != "" {
				t.Errorf("results (-want +got):\n%s", diff)
			}
		})
	}
}

// One message that is never acknowledged neither holds up the others nor ends shared connections again and again.
func TestOneNeverAcknowledged(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{Ignore: func(topic string) bool { return strings.HasPrefix(topic, "deaf/") }})
	metrics := NewMetrics(nil)
	p := startPool(t, Options{URL: broker.URL(), AckTimeout: time.Second, Metrics: metrics})
	deaf := newGroup("deaf", 5)
	dead := deaf.mortal()
	deaf.publish(t, p)
	for range 10 {
		g := newGroup("task", 500)
		g.publish(t, p)
		g.wantAllAcked(t, time.Minute)
	}
	eventually(t, "each is sent again and again", func() bool {
		got := broker.Published()
		return got["deaf/0"] >= 4 && got["deaf/4"] >= 4
	})
	if n := deaf.settledCount(); n > 0 {
		t.Errorf("%d unacknowledged messages were settled", n)
	}
	eventually(t, "both shared connections are up", func() bool { return testutil.ToFloat64(metrics.connected) == 2 })
	dead.Store(true)
	if diff := cmp.Diff(map[error]int{ErrAbandoned: 5}, deaf.results(t, time.Minute), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
}

// A broker that is slow but gets on is not sent anything twice, however long a message waits: here for longer than
// AckTimeout. Time passes as messages are acknowledged, a second for a hundred, however slow this machine is.
func TestSlowBroker(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{AcksPerSecond: 500})
	clock := clocktesting.NewFakeClock(time.Now())
	p := startPool(t, Options{
		URL: broker.URL(), Connections: 1, Window: 1000, AckTimeout: 3 * time.Second, Clock: clock,
		WriteTimeout: time.Hour, ConnectTimeout: time.Minute, // in real time
	})
	g := newGroup("task", 1500)
	go g.publish(t, p)
	for acked := 100; acked <= 1500; acked += 100 {
		eventually(t, "a hundred more are acknowledged", func() bool { return g.settledCount() >= acked })
		clock.Step(time.Second)
	}
	g.wantAllAcked(t, time.Minute)
	if _, total := sum(broker.Published()); total != 1500 {
		t.Errorf("broker got %d messages, want 1500", total)
	}
}

func TestClose(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{Ignore: mqtttest.All})
	p, err := New(Options{URL: broker.URL(), Window: 10})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, p)
	g := newGroup("task", 10)
	g.publish(t, p)

	// The window is full, so one more has to wait.
	more := newGroup("more", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Publish(ctx, more.messages[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("Publish with a full window and a cancelled context: %v", err)
	}
	waiting := make(chan error)
	go func() { waiting <- p.Publish(t.Context(), more.messages[0]) }()
	stop()
	// It was taken or not; if so, it may have got a result.
	if err := <-waiting; err != nil && !errors.Is(err, ErrClosed) {
		t.Errorf("Publish while the pool was closed: %v", err)
	}
	if diff := cmp.Diff(map[error]int{ErrAbandoned: 10}, g.results(t, time.Minute), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if err := p.Publish(t.Context(), newGroup("late", 1).messages[0]); !errors.Is(err, ErrClosed) {
		t.Errorf("Publish after the end: %v", err)
	}
	if err := p.Start(t.Context()); err == nil {
		t.Error("a second Start succeeded")
	}
	if p.Connected() {
		t.Error("still connected")
	}
}

func TestInvalidMessage(t *testing.T) {
	tests := []struct {
		name        string
		topic       string
		payload     int
		wantInvalid bool
	}{
		{name: "ordinary", topic: "a/b", payload: 10},
		{name: "longest topic", topic: strings.Repeat("a", 65535)},
		{name: "largest payload", topic: "a", payload: 1000},
		{name: "leading dollar", topic: "$shadow/operation/result/P/d"},
		{name: "empty topic", topic: "", wantInvalid: true},
		{name: "plus", topic: "a/+", wantInvalid: true},
		{name: "hash", topic: "#", wantInvalid: true},
		{name: "NUL", topic: "a\x00b", wantInvalid: true},
		{name: "not UTF-8", topic: "a\xffb", wantInvalid: true},
		{name: "surrogate", topic: "a\xed\xa0\x80", wantInvalid: true},
		{name: "topic too long", topic: strings.Repeat("a", 65536), wantInvalid: true},
		{name: "payload too large", topic: "a", payload: 1001, wantInvalid: true},
	}
	broker := mqtttest.StartMosquitto(t)
	p := startPool(t, Options{URL: broker.URL(), MaxPayloadBytes: 1000})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := &group{}
			g.add(&message{source: "task", topic: tt.topic, payload: make([]byte, tt.payload)})
			g.publish(t, p)
			g.await(t, time.Minute)
			err := g.messages[0].err
			if tt.wantInvalid != errors.Is(err, ErrInvalidMessage) || !tt.wantInvalid && err != nil {
				t.Errorf("settled with %v, want invalid: %t", err, tt.wantInvalid)
			}
		})
	}
}

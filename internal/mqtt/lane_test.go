package mqtt

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// tooLarge is a payload for which a mosquitto with max_packet_size 2000 closes the connection.
func tooLarge() []byte { return make([]byte, 3000) }

func TestOnePoisonMessage(t *testing.T) {
	broker := mqtttest.StartMosquitto(t, mqtttest.WithConfig("max_packet_size 2000"))
	p := startPool(t, Options{URL: broker.URL()})
	groups := []*group{newGroup("a", 5000), newGroup("b", 5000), newGroup("c", 5000)}
	groups[1].messages[2500].payload = tooLarge()
	for _, g := range groups {
		go g.publish(t, p)
	}
	for i, g := range groups {
		want := map[error]int{nil: 5000}
		if i == 1 {
			want = map[error]int{nil: 4999, ErrRejected: 1}
		}
		if diff := cmp.Diff(want, g.results(t, time.Minute), cmpopts.EquateErrors()); diff != "" {
			t.Errorf("results of group %d (-want +got):\n%s", i, diff)
		}
	}
	if err := groups[1].messages[2500].err; !errors.Is(err, ErrRejected) {
		t.Errorf("the poison message was settled with %v", err)
	}
}

func TestPoisonSource(t *testing.T) {
	broker := mqtttest.StartMosquitto(t, mqtttest.WithConfig("max_packet_size 2000"))
	metrics := NewMetrics(nil)
	p := startPool(t, Options{URL: broker.URL(), Metrics: metrics, Probation: time.Millisecond})
	poison := newGroup("poison", 200)
	for _, m := range poison.messages {
		m.payload = tooLarge()
	}
	healthy := newGroup("healthy", 20000)
	go healthy.publish(t, p)
	poison.publish(t, p)

	healthy.wantAllAcked(t, time.Minute)
	// Each takes three connections.
	if diff := cmp.Diff(map[error]int{ErrRejected: 200}, poison.results(t, 5*time.Minute), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if got := testutil.ToFloat64(metrics.rejected); got != 200 {
		t.Errorf("%s is %v, want 200", MetricRejected, got)
	}

	// On probation the product does not touch the shared connections any more.
	before := p.witness().ended
	again := newGroup("poison", 10)
	for _, m := range again.messages {
		m.payload = tooLarge()
	}
	again.publish(t, p)
	if diff := cmp.Diff(map[error]int{ErrRejected: 10}, again.results(t, time.Minute), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("results on probation (-want +got):\n%s", diff)
	}
	if got := p.witness().ended; got != before {
		t.Errorf("%d shared connections were dropped for a product on probation", got-before)
	}

	// Good behaviour ends it.
	good := newGroup("poison", 2*probationEnd)
	good.publish(t, p)
	good.wantAllAcked(t, time.Minute)
	eventually(t, "the lane is gone", func() bool { return p.quarantine.count.Load() == 0 })
}

// More poisonous sources than lanes may be active at once: all get their turn.
func TestManyPoisonSources(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{Drop: func(topic string) bool { return strings.HasSuffix(topic, "/3") }})
	p := startPool(t, Options{URL: broker.URL()})
	var groups []*group
	for i := range 3 * maxActiveLanes {
		g := newGroup(fmt.Sprintf("task%d", i), 20)
		groups = append(groups, g)
		g.publish(t, p)
	}
	for i, g := range groups {
		if diff := cmp.Diff(map[error]int{nil: 19, ErrRejected: 1}, g.results(t, time.Minute), cmpopts.EquateErrors()); diff != "" {
			t.Errorf("results of group %d (-want +got):\n%s", i, diff)
		}
	}
}

func sharedSenders(p *Pool) []*sender {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.shared))
}

// A broker that goes down again and again, while messages are found out about, condemns none of them, nor loses any.
func TestFlappingBroker(t *testing.T) {
	tests := []struct {
		name string
		flap func(b *mqtttest.FaultBroker)
	}{
		{name: "connections dropped", flap: func(b *mqtttest.FaultBroker) { b.DropAll() }},
		{name: "down for a while", flap: func(b *mqtttest.FaultBroker) {
			b.SetFaults(mqtttest.Faults{RefuseConnect: true})
			b.DropAll()
			<-time.After(5 * time.Millisecond)
			b.SetFaults(mqtttest.Faults{AcksPerSecond: 300})
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{AcksPerSecond: 300})
			p := startPool(t, Options{URL: broker.URL()})
			g := newGroup("task", 400)
			g.publish(t, p)
			for range 60 {
				up := sharedSenders(p)
				tt.flap(broker)
				// That shared connections have ended is what acquits the messages; the pool may learn it late, but not
				// three times in a row.
				eventually(t, "the pool has seen it", func() bool {
					now := sharedSenders(p)
					return !slices.ContainsFunc(up, func(s *sender) bool { return slices.Contains(now, s) })
				})
				<-time.After(15 * time.Millisecond)
			}
			g.wantAllAcked(t, time.Minute)
		})
	}
}

func TestBrokerRestartInCarefulLane(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	p := startPool(t, Options{URL: broker.URL()})
	g := newGroup("task", 5000)
	go g.publish(t, p)
	for range 6 {
		// From where it is: a message may be the one that is tried alone only once.
		before := g.settledCount()
		eventually(t, "it goes on", func() bool { return g.settledCount() >= min(before+500, 5000) })
		broker.Kill()
		broker.Restart()
	}
	g.wantAllAcked(t, time.Minute)
}

// A product whose every message makes the broker hang up costs the others one shared connection, however many tasks it
// makes, and whether or not these wait for a verdict.
func TestNewTasksOfAPoisonProduct(t *testing.T) {
	for name, waits := range map[string]bool{"waiting for the verdict": true, "over before the verdict": false} {
		t.Run(name, func(t *testing.T) {
			broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{Drop: func(topic string) bool { return strings.HasPrefix(topic, "poison") }})
			p := startPool(t, Options{URL: broker.URL()})
			eventually(t, "both shared connections are up", func() bool { return p.sharedUp.Load() == 2 })
			for i := range 20 {
				g := newGroup("poison", 1)
				g.messages[0].task = i
				dead := g.mortal()
				g.publish(t, p)
				want := ErrRejected
				if !waits {
					eventually(t, "the broker has dropped it once", func() bool { return p.quarantine.count.Load() == 1 })
					dead.Store(true)
					want = ErrAbandoned
				}
				got := g.results(t, time.Minute)
				if waits && got[want] != 1 {
					t.Fatalf("task %d: %v, want %v", i, got, want)
				}
			}
			if got := p.witness().ended; got != 1 {
				t.Errorf("%d shared connections were lost, want 1", got)
			}
		})
	}
}

// New products do not help a tenant for ever: once some are on probation, others are kept apart from the start.
func TestNewProductsOfAPoisonTenant(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{Drop: func(topic string) bool { return strings.HasPrefix(topic, "poison") }})
	p := startPool(t, Options{URL: broker.URL()})
	eventually(t, "both shared connections are up", func() bool { return p.sharedUp.Load() == 2 })
	for i := range 5 * maxGuilty {
		g := newGroup(fmt.Sprintf("poison%d", i), 1)
		g.messages[0].tenant = "mallory"
		g.publish(t, p)
		if got := g.results(t, time.Minute); got[ErrRejected] != 1 {
			t.Fatalf("product %d: %v", i, got)
		}
		eventually(t, "both shared connections are up", func() bool { return p.sharedUp.Load() == 2 })
	}
	if got := p.witness().ended; got > maxGuilty {
		t.Errorf("%d shared connections were lost, want at most %d", got, maxGuilty)
	}
	good := newGroup("good", 100)
	for _, m := range good.messages {
		m.tenant = "mallory"
	}
	good.publish(t, p)
	good.wantAllAcked(t, time.Minute)
}

// Tasks of one product take turns, so that one full of refused messages does not hold up another that is well.
func TestTasksOfAProductTakeTurns(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{Drop: func(topic string) bool { return strings.HasPrefix(topic, "product/bad") }})
	p := startPool(t, Options{URL: broker.URL()})
	bad, good := &group{}, &group{}
	for i := range 300 {
		bad.add(&message{source: "product", task: "bad", topic: fmt.Sprintf("product/bad/%d", i)})
	}
	for i := range 600 {
		good.add(&message{source: "product", task: "good", topic: fmt.Sprintf("product/good/%d", i)})
	}
	bad.publish(t, p)
	good.publish(t, p)
	good.wantAllAcked(t, time.Minute)
	if n := bad.settledCount(); n > 100 {
		t.Errorf("%d of 300 refused messages were settled before all good ones: they did not take turns", n)
	}
	bad.await(t, 5*time.Minute)
}

func TestTrial(t *testing.T) {
	up := func(ended uint64) witness { return witness{up: true, ended: ended} }
	hangUp := errors.New("EOF")
	type step struct{ sent, after witness }
	tests := []struct {
		name         string
		steps        []step
		wantRejected bool
		wantStrikes  int
	}{
		{name: "two strikes", steps: []step{{up(0), up(0)}, {up(0), up(0)}}, wantStrikes: 2},
		{name: "three strikes", steps: []step{{up(5), up(5)}, {up(5), up(5)}, {up(5), up(5)}}, wantRejected: true},
		{name: "a disturbance takes the strikes back", steps: []step{{up(0), up(0)}, {up(0), up(0)}, {up(0), up(1)}}},
		{name: "also between two tries", steps: []step{{up(0), up(0)}, {up(0), up(0)}, {up(1), up(1)}}},
		{name: "and they count anew", steps: []step{{up(0), up(0)}, {up(0), up(1)}, {up(1), up(1)}, {up(1), up(1)}, {up(1), up(1)}}, wantRejected: true},
		{name: "nobody else is connected", steps: []step{{witness{}, up(0)}, {witness{}, up(0)}, {witness{}, up(0)}}},
		{name: "somebody else has just connected", steps: []step{{witness{}, up(0)}, {up(0), up(0)}, {up(0), up(0)}}, wantStrikes: 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			accused := &item{}
			var tr trial
			rejected := false
			for _, s := range tt.steps {
				tr.begin(accused, s.sent)
				tr.dropped(hangUp)
				rejected = tr.connected(s.after) != nil || rejected
			}
			if rejected != tt.wantRejected || tr.strikes != tt.wantStrikes {
				t.Errorf("rejected: %t with %d strikes, want %t with %d", rejected, tr.strikes, tt.wantRejected, tt.wantStrikes)
			}
		})
	}
	t.Run("another message begins anew", func(t *testing.T) {
		var tr trial
		for range strikesToReject {
			tr.begin(&item{}, up(0))
			tr.dropped(hangUp)
			if tr.connected(up(0)) != nil {
				t.Error("a message was rejected for what others did")
			}
		}
	})
	t.Run("no drop, no strike", func(t *testing.T) {
		var tr trial
		for range strikesToReject {
			tr.begin(&item{}, up(0))
			if tr.connected(up(0)) != nil || tr.strikes != 0 {
				t.Error("a strike without a drop")
			}
		}
	})
}

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
	p := startPool(t, Options{URL: broker.URL(), Metrics: metrics})
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

	// On probation the source does not touch the shared connections any more.
	p.mu.Lock()
	before := p.sharedDrops.Load()
	p.mu.Unlock()
	again := newGroup("poison", 10)
	for _, m := range again.messages {
		m.payload = tooLarge()
	}
	again.publish(t, p)
	if diff := cmp.Diff(map[error]int{ErrRejected: 10}, again.results(t, time.Minute), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("results on probation (-want +got):\n%s", diff)
	}
	if got := p.sharedDrops.Load(); got != before {
		t.Errorf("%d shared connections were dropped for a source on probation", got-before)
	}

	// Good behaviour ends it.
	good := newGroup("poison", 2*probationEnd)
	good.publish(t, p)
	good.wantAllAcked(t, time.Minute)
	eventually(t, "the lane is gone", func() bool { return p.laneCount.Load() == 0 })
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

func sharedSessions(p *Pool) []*session {
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
				up := sharedSessions(p)
				tt.flap(broker)
				// That shared connections have ended is what acquits the messages; the pool may learn it late, but not
				// three times in a row.
				eventually(t, "the pool has seen it", func() bool {
					now := sharedSessions(p)
					return !slices.ContainsFunc(up, func(s *session) bool { return slices.Contains(now, s) })
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

func TestEvidence(t *testing.T) {
	type step struct {
		before    bool // a shared connection has ended since the last try
		disturbed bool // a shared connection ended meanwhile
		nobody    bool // no shared connection is up
	}
	tests := []struct {
		name         string
		steps        []step
		wantRejected bool
		wantStrikes  int
	}{
		{name: "two strikes", steps: make([]step, 2), wantStrikes: 2},
		{name: "three strikes", steps: make([]step, 3), wantRejected: true},
		{name: "a disturbance takes the strikes back", steps: []step{{}, {}, {disturbed: true}}, wantStrikes: 0},
		{name: "also between two tries", steps: []step{{}, {}, {before: true}}, wantStrikes: 0},
		{name: "and they count anew", steps: []step{{}, {disturbed: true}, {}, {}, {}}, wantRejected: true},
		{name: "nobody else is connected", steps: []step{{nobody: true}, {nobody: true}, {nobody: true}}, wantStrikes: 0},
		{name: "somebody else has just connected", steps: []step{{nobody: true}, {}, {}}, wantStrikes: 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := New(Options{URL: "tcp://localhost"})
			if err != nil {
				t.Fatal(err)
			}
			g := newGroup("task", 1)
			g.publish(t, p)
			it := <-p.queue
			p.accuse([]*item{it})
			l := p.lanes["task"]
			other := &session{link: &link{conn: &bufferedConn{dead: make(chan struct{})}}}
			for _, s := range tt.steps {
				if delete(p.shared, other); !s.nobody {
					p.shared[other] = nil
				}
				if s.before {
					p.sharedDrops.Add(1)
				}
				l.try(it)
				l.trial.pending = true
				if s.disturbed {
					p.sharedDrops.Add(1)
				}
				p.shared[other] = nil // it is there by now
				l.judge()
			}
			if got := g.settledCount() == 1; got != tt.wantRejected {
				t.Errorf("rejected: %t, want %t", got, tt.wantRejected)
			}
			if l.trial.strikes != tt.wantStrikes {
				t.Errorf("%d strikes, want %d", l.trial.strikes, tt.wantStrikes)
			}
		})
	}
}

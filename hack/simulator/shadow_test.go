package simulator_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/hack/simulator"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/mqtt"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/shadow/service"
)

const (
	asked    = "$shadow/operation/P/"
	answered = "$shadow/operation/result/P/"
)

var product = fleet.Product{Namespace: "here", ProductID: "P"}

type owner struct{}

func (owner) Namespace(context.Context, string) (string, error) { return product.Namespace, nil }

// site is the shadow service with devices in memory, and a task's pen.
type site struct {
	*testing.T
	ctx     context.Context
	store   *fleettest.Memory
	url     string
	publish func(topic, payload string)
	tasks   int
}

func newSite(t *testing.T, names ...string) *site {
	t.Helper()
	s := &site{T: t, store: fleettest.NewMemory(), url: mqtttest.StartMosquitto(t).URL()}
	for _, name := range names {
		s.store.Create(t, product, fleettest.Device{Name: name})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	s.ctx, s.publish = ctx, publisher(t, s.url)
	return s
}

// serve starts the shadow service.
func (s *site) serve() {
	s.Helper()
	server, err := service.New(s.store, owner{}, service.Options{MQTT: mqtt.Options{URL: s.url}})
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	ended := make(chan error, 1)
	go func() { ended <- server.Start(ctx) }()
	s.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.Errorf("the shadow service: %v", err)
		}
	})
	s.eventually("the service is connected", server.Connected)
}

func (s *site) simulate(opts simulator.Options) *simulator.Fleet {
	s.Helper()
	opts.BrokerURL, opts.ProductID, opts.Shadows = s.url, product.ProductID, len(opts.Names)
	devices, err := simulator.Start(s.ctx, opts)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(devices.Close)
	return devices
}

// desire writes to a shadow as a task does, and returns the delta.
func (s *site) desire(name, patch string) (delta string) {
	s.Helper()
	object, err := shadow.ParseDesired(patch)
	if err != nil {
		s.Fatal(err)
	}
	s.tasks++
	update := fleet.DesiredUpdate{TaskUID: fmt.Sprint("task-", s.tasks), Patch: object, Now: time.Now()}
	result := s.store.ApplyDesired(s.ctx, product, update, []string{name})[0]
	if result.Err != nil || result.Delta == nil {
		s.Fatalf("device %s: delta %q, error %v", name, result.Delta, result.Err)
	}
	return string(result.Delta)
}

func (s *site) eventually(what string, holds func() bool) {
	s.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			s.Fatalf("not in time: %s", what)
		}
	}
}

// wantSettled waits until the device knows a version, and compares what it is, and
// what is stored, at that version, with nothing desired.
func (s *site) wantSettled(devices *simulator.Fleet, name, state string, version int64) {
	s.Helper()
	s.eventually(fmt.Sprintf("device %s at version %d", name, version), func() bool { return devices.Shadow(name).Version >= version })
	if diff := cmp.Diff(simulator.Shadow{State: state, Version: version}, devices.Shadow(name)); diff != "" {
		s.Errorf("device %s (-want +got):\n%s", name, diff)
	}
	stored := s.store.Shadow(s, product, name)
	if stored.Reported != state || stored.Desired != "" || stored.Version != version {
		s.Errorf("stored for device %s: reported %q, desired %q, version %d, want %s, nothing, %d",
			name, stored.Reported, stored.Desired, stored.Version, state, version)
	}
}

// A device that is connected complies with deltas; one that was not asks what it
// has missed. Only deltas count as messages.
func TestDevicesKeepTheirShadows(t *testing.T) {
	s := newSite(t, "online", "offline")
	s.serve()
	devices := s.simulate(simulator.Options{Names: []string{"online", "offline"}, Offline: []string{"offline"}, AnswerTimeout: time.Minute})
	for i, patch := range []string{`{"state":"open","lamp":{"on":true}}`, `{"lamp":{"level":12345678901234567890.10}}`} {
		s.publish(answered+"online", s.desire("online", patch))
		s.desire("offline", patch)
		s.eventually("the report", func() bool { return devices.Shadow("online").Version == int64(2*i+2) })
	}
	const state = `{"lamp":{"level":12345678901234567890.10,"on":true},"state":"open"}`
	s.wantSettled(devices, "online", state, 4)

	if got := s.store.Shadow(t, product, "offline"); got.Reported != "" || got.Version != 2 {
		t.Errorf("a device that is not connected has reported %q, version %d", got.Reported, got.Version)
	}
	if err := devices.Connect(s.ctx, "offline"); err != nil {
		t.Fatal(err)
	}
	s.wantSettled(devices, "offline", state, 3)

	if devices.Count("online") != 2 || devices.Count("offline") != 0 || devices.Total() != 2 {
		t.Errorf("messages: %d, %d, %d in all, want the two deltas, no answers", devices.Count("online"), devices.Count("offline"), devices.Total())
	}
	var got []string
	for _, m := range devices.Dialog("offline") {
		kind, _, _ := strings.Cut(m.Payload[strings.Index(m.Payload, `"type":`)+len(`"type":`):], `,`)
		got = append(got, m.Topic+" "+strings.Trim(kind, `"}`))
	}
	want := []string{asked + "offline get", answered + "offline get", asked + "offline update", answered + "offline update"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what is said about the shadow (-want +got):\n%s", diff)
	}
}

// What was desired after a delta was sent is not cleared by the report of that
// delta, and a delta that comes again changes nothing.
func TestDeltasOutOfDate(t *testing.T) {
	s := newSite(t, "d")
	s.serve()
	devices := s.simulate(simulator.Options{Names: []string{"d"}, AnswerTimeout: time.Minute, Keep: 100})
	s.eventually("the first get is answered", func() bool { return len(devices.Dialog("d")) == 2 })

	first := s.desire("d", `{"state":"open"}`)
	s.desire("d", `{"lamp":"on"}`)
	s.publish(answered+"d", first)
	s.wantSettled(devices, "d", `{"lamp":"on","state":"open"}`, 3)

	before := len(devices.Dialog("d"))
	s.publish(answered+"d", first)
	s.eventually("the second get is answered", func() bool { return len(devices.Dialog("d")) == before+2 })
	s.wantSettled(devices, "d", `{"lamp":"on","state":"open"}`, 3)
	if devices.Count("d") != 2 {
		t.Errorf("%d messages, want both deltas", devices.Count("d"))
	}
}

// A device that gets no answer sends the same again.
func TestRepeatUntilAnswered(t *testing.T) {
	s := newSite(t, "d")
	devices := s.simulate(simulator.Options{Names: []string{"d"}, AnswerTimeout: 10 * time.Millisecond})
	s.eventually("the get is sent again", func() bool { return len(devices.Dialog("d")) >= 3 })
	dialog := devices.Dialog("d")
	if dialog[0] != dialog[1] || dialog[1] != dialog[2] || dialog[0].Topic != asked+"d" {
		t.Errorf("sent again: %v", dialog)
	}
	s.desire("d", `{"state":"open"}`)
	s.serve()
	s.wantSettled(devices, "d", `{"state":"open"}`, 2)
}

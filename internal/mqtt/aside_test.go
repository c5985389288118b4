package mqtt

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// Messages that the broker takes and never acknowledges, many times the window of them, keep
// nobody from publishing, nor do messages that nobody waits for any more. Each that is acknowledged
// later has its result.
func TestUnacknowledgedMessagesKeepNoPlaces(t *testing.T) {
	const window = 50
	deaf := func(topic string) bool { return strings.HasPrefix(topic, "deaf/") }
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{Ignore: deaf})
	p := startPool(t, Options{URL: broker.URL(), AckTimeout: time.Second, Window: window})
	unheard := newGroup("deaf", 4*window)
	unheard.publish(t, p)
	dropped := newGroup("deaf", window)
	dropped.mortal().Store(true)
	dropped.publish(t, p)
	others := newGroup("task", 10*window)
	others.publish(t, p)
	others.wantAllAcked(t, time.Minute)
	if n := unheard.settledCount(); n > 0 {
		t.Errorf("%d messages without an acknowledgement were settled", n)
	}
	if diff := cmp.Diff(map[error]int{ErrAbandoned: window}, dropped.results(t, time.Minute), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("what nobody waits for (-want +got):\n%s", diff)
	}
	broker.SetFaults(mqtttest.Faults{})
	unheard.wantAllAcked(t, time.Minute)
	eventually(t, "all places are free", func() bool { return len(p.slots) == 0 && p.aside.empty() })
}

// The same while there is no broker at all: what waits in the queue goes aside, too.
func TestWaitingMessagesKeepNoPlaces(t *testing.T) {
	const window = 20
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{RefuseConnect: true})
	p := startPool(t, Options{URL: broker.URL(), AckTimeout: 500 * time.Millisecond, Window: window})
	g := newGroup("task", 3*window)
	g.publish(t, p)
	broker.SetFaults(mqtttest.Faults{})
	g.wantAllAcked(t, time.Minute)
}

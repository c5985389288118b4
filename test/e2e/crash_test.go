package e2e

import (
	"fmt"
	"testing"
	"time"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

const (
	crashDevices = 5000
	crashWindow  = 200
)

// The manager is killed with SIGKILL at several moments of a task and started
// again: every device receives its message, the counts are exact, and no more than
// one window for each crash is sent twice.
func TestManagerKilled(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	tap := newTap(t, broker.URL(), 1200)
	s := newSite(t, names(crashDevices)...)
	box := subscribe(t, broker.URL(), s.product+"/+/event")
	window := fmt.Sprintf("--publish-window=%d", crashWindow)

	m := startManager(t, tap.url(), window)
	s.create(s.task("close").Publish("event", "close").Filter(".*").Obj())
	moments := []int{50, 1300, 3700} // messages sent when the manager dies
	for _, moment := range moments {
		eventually(t, time.Minute, fmt.Sprintf("%d messages", moment), func() (bool, string) {
			return tap.sent() >= moment, fmt.Sprintf("%d were sent, the task is %s", tap.sent(), describe(s.get("close")))
		})
		m.kill()
		if task := s.get("close"); task.Status.Phase.Finished() {
			t.Fatalf("the task was %s before the manager was killed: the test is too slow", task.Status.Phase)
		}
		m = startManager(t, tap.url(), window)
	}
	task := s.finished("close", 2*time.Minute)

	wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: crashDevices, Succeeded: crashDevices})
	wantEvidence(t, tap, crashDevices, crashWindow*len(moments))
	eventually(t, 30*time.Second, "every device to receive its message", func() (bool, string) {
		messages, devices := box.counts()
		return devices == crashDevices, fmt.Sprintf("%d messages for %d devices", messages, devices)
	})
}

// A planned restart sends nothing twice.
func TestManagerStopped(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	tap := newTap(t, broker.URL(), 800)
	s := newSite(t, names(2000)...)
	m := startManager(t, tap.url())
	s.create(s.task("close").Publish("event", "close").Filter(".*").Obj())
	eventually(t, time.Minute, "1200 messages", func() (bool, string) { return tap.sent() >= 1200, "" })
	m.stop(t)
	startManager(t, tap.url())
	task := s.finished("close", time.Minute)
	wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: 2000, Succeeded: 2000})
	wantEvidence(t, tap, 2000, 0)
}

// The broker is killed with SIGKILL in mid-task and comes back after five seconds.
func TestBrokerKilled(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	tap := newTap(t, broker.URL(), 1500)
	s := newSite(t, names(crashDevices)...)
	startManager(t, tap.url(), fmt.Sprintf("--publish-window=%d", crashWindow))
	s.create(s.task("close").Publish("event", "close").Filter(".*").Obj())
	eventually(t, time.Minute, "1500 messages", func() (bool, string) { return tap.sent() >= 1500, "" })
	broker.Kill()
	if task := s.get("close"); task.Status.Phase.Finished() {
		t.Fatalf("the task was %s before the broker was killed", task.Status.Phase)
	}
	<-time.After(5 * time.Second)
	broker.Restart()
	task := s.finished("close", 2*time.Minute)
	wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: crashDevices, Succeeded: crashDevices})
	wantEvidence(t, tap, crashDevices, crashWindow)
}

// wantEvidence checks that the broker acknowledged a message to every device, and
// that no more than this many messages were sent twice.
func wantEvidence(t *testing.T, tap *tap, devices, duplicates int) {
	t.Helper()
	published, acked := tap.evidence()
	sent := 0
	for topic, times := range published {
		sent += times
		if acked[topic] == 0 {
			t.Errorf("%s counts as served, and the broker never acknowledged its message", topic)
		}
	}
	if len(published) != devices || sent > devices+duplicates {
		t.Errorf("%d messages to %d devices, want at most %d to %d", sent, len(published), devices+duplicates, devices)
	}
	t.Logf("%d messages to %d devices", sent, devices)
}

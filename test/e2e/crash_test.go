package e2e

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

const (
	crashDevices = 5000
	crashWindow  = 200
	// While the test holds acknowledgements back nothing is to be sent again for that,
	// however long it takes.
	noResend = "--mqtt-ack-timeout=10m"
)

// The manager is killed with SIGKILL at several moments of a task and started
// again: every device receives its message, the counts are exact, and no more than
// one window for each crash is sent twice.
func TestManagerKilled(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	tap := newTap(t, broker.URL())
	s := newSite(t, names(crashDevices)...)
	box := subscribe(t, broker.URL(), s.product+"/+/event")
	window := fmt.Sprintf("--publish-window=%d", crashWindow)

	tap.letPass(0)
	m := startManager(t, tap.url(), window, noResend)
	s.create(s.task("close").Publish("event", "close").Filter(".*").Obj())
	moments := []int{50, 1300, 3700}
	tap.killAt(t, m, moments, crashWindow, window, noResend)
	task := s.finished("close")

	wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: crashDevices, Succeeded: crashDevices})
	wantEvidence(t, tap, crashDevices, crashWindow*len(moments))
	eventually(t, "every device to receive its message", func() (bool, string) {
		messages, devices := box.counts()
		return devices == crashDevices, fmt.Sprintf("%d messages for %d devices", messages, devices)
	})
}

// A planned restart sends nothing twice, for it waits for what is on its way.
func TestManagerStopped(t *testing.T) {
	const devices = 2000
	broker := mqtttest.StartMosquitto(t)
	tap := newTap(t, broker.URL())
	s := newSite(t, names(devices)...)
	tap.letPass(1000)
	m := startManager(t, tap.url(), "--publish-window=100", "--drain-timeout=10m", noResend)
	s.create(s.task("close").Publish("event", "close").Filter(".*").Obj())
	tap.await(t, 1000)
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the manager to end", func() (bool, string) {
		tap.letMorePass(2, devices)
		select {
		case <-m.ended:
			return true, ""
		default:
			return false, "it is running"
		}
	})
	tap.letAllPass()
	startManager(t, tap.url())
	task := s.finished("close")
	wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: devices, Succeeded: devices})
	wantEvidence(t, tap, devices, 0)
}

// The broker is killed with SIGKILL in mid-task and comes back after five seconds.
func TestBrokerKilled(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	tap := newTap(t, broker.URL())
	s := newSite(t, names(crashDevices)...)
	tap.letPass(1500)
	startManager(t, tap.url(), fmt.Sprintf("--publish-window=%d", crashWindow), noResend)
	s.create(s.task("close").Publish("event", "close").Filter(".*").Obj())
	tap.await(t, 1500)
	tap.awaitHeld(t)
	broker.Kill()
	tap.awaitLost(t)
	tap.letAllPass()
	<-time.After(5 * time.Second)
	broker.Restart()
	task := s.finished("close")
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

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// A broker that takes messages and never acknowledges them: no device is ever
// counted as succeeded, and at the deadline every one has failed.
func TestBrokerNeverAcknowledges(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{Ignore: mqtttest.All})
	s := newSite(t, names(300)...)
	startManager(t, broker.URL(), "--publish-window=100", "--mqtt-ack-timeout=2s")
	s.create(s.task("close").Publish("event", "close").Filter(".*").MaxExecution(20).Obj())
	eventually(t, "messages", func() (bool, string) { return len(broker.Published()) > 0, "" })
	var task *v1alpha1.BatchTask
	eventually(t, "the task to finish", func() (bool, string) {
		task = s.get("close")
		if task.Status.Counts().Succeeded != 0 {
			t.Fatalf("devices count as succeeded: %s", describe(task))
		}
		return task.Status.Phase.Finished(), describe(task)
	})
	wantCounts(t, task, v1alpha1.TaskPhaseFailed, v1alpha1.DeviceCounts{Matched: 300, Failed: 300})
	if ran := task.Status.CompletionTime.Sub(task.Status.StartTime.Time); ran < 20*time.Second {
		t.Errorf("the task ran for %s of its 20 s", ran)
	}
	if len(task.Status.Failures) != 20 || task.Status.Failures[0].Reason != v1alpha1.ReasonDeadlineExceeded {
		t.Errorf("failures: %+v", task.Status.Failures)
	}
}

// A message that makes the broker end the connection fails its own device and
// holds up neither its task nor another.
func TestPoisonMessage(t *testing.T) {
	poison := "d-00123"
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{Drop: func(topic string) bool { return strings.Contains(topic, poison) }})
	s := newSite(t, names(2000)...)
	startManager(t, broker.URL())
	s.create(s.task("poisoned").Publish("event", "close").Filter(".*").Obj())
	s.create(s.task("healthy").Publish("event", "close").Filter("^d-01").Obj())
	wantCounts(t, s.finished("healthy"), v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: 1000, Succeeded: 1000})
	task := s.finished("poisoned")
	wantCounts(t, task, v1alpha1.TaskPhaseFailed, v1alpha1.DeviceCounts{Matched: 2000, Succeeded: 1999, Failed: 1})
	if f := task.Status.Failures; len(f) != 1 || f[0].DeviceName != poison || f[0].Reason != v1alpha1.ReasonPublishRejected {
		t.Errorf("failures: %+v", f)
	}
}

// Ten small tasks are done before a large one, begun earlier, is half done: their
// messages do not wait behind all of those that are on their way.
func TestSmallTasksAreNotDelayed(t *testing.T) {
	const devices, window = 5000, 100
	broker := mqtttest.StartMosquitto(t)
	tap := newTap(t, broker.URL())
	tap.letPass(window)
	large := newSite(t, names(devices)...)
	small := []*site{newSite(t, names(10)...), newSite(t, names(10)...)}
	startManager(t, tap.url(), fmt.Sprintf("--publish-window=%d", window), noResend)
	large.create(large.task("large").Publish("event", "close").Filter(".*").Obj())
	tap.await(t, window)
	tap.awaitHeld(t)
	for i := range 10 {
		s := small[i%2]
		s.create(s.task(fmt.Sprintf("small-%d", i)).Publish("event", "close").Filter(".*").Obj())
	}
	// How fast the API server is does not count.
	for i := range 10 {
		eventually(t, "a small task to begin", func() (bool, string) {
			task := small[i%2].get(fmt.Sprintf("small-%d", i))
			return task.Status.Phase == v1alpha1.TaskPhaseProcessing, describe(task)
		})
	}
	for i := range 10 {
		var task *v1alpha1.BatchTask
		// As long as the test looks, the broker goes on, until half of all is done.
		eventually(t, "a small task to finish", func() (bool, string) {
			tap.letMorePass(2, devices/2)
			task = small[i%2].get(fmt.Sprintf("small-%d", i))
			return task.Status.Phase.Finished(), describe(task)
		})
		wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: 10, Succeeded: 10})
	}
	tap.letAllPass()
	wantCounts(t, large.finished("large"), v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: devices, Succeeded: devices})
}

// A task is cancelled while it waits, and one while it runs. What is on its way then
// still counts.
func TestCancel(t *testing.T) {
	const devices = 2000
	broker := mqtttest.StartMosquitto(t)
	tap := newTap(t, broker.URL())
	tap.letPass(500)
	s := newSite(t, names(devices)...)
	startManager(t, tap.url(), "--publish-window=100", "--drain-timeout=10m", noResend)
	s.create(s.task("waits").Publish("event", "close").Filter(".*").ScheduleAt(time.Now().Add(time.Hour).Unix()).Obj())
	s.create(s.task("runs").Publish("event", "close").Filter(".*").Obj())
	eventually(t, "counts", func() (bool, string) {
		return s.get("waits").Status.Phase == v1alpha1.TaskPhaseWaiting && s.get("runs").Status.Counts().Succeeded > 100, describe(s.get("runs"))
	})
	tap.awaitHeld(t)
	s.cancel("waits")
	s.cancel("runs")
	wantCounts(t, s.finished("waits"), v1alpha1.TaskPhaseCancelled, v1alpha1.DeviceCounts{})
	var task *v1alpha1.BatchTask
	eventually(t, "task runs to finish", func() (bool, string) {
		tap.letMorePass(5, devices-200) // it cannot have served all before it is cancelled
		task = s.get("runs")
		return task.Status.Phase.Finished(), describe(task)
	})
	published, acked := tap.evidence()
	served := int64(len(acked))
	wantCounts(t, task, v1alpha1.TaskPhaseCancelled, v1alpha1.DeviceCounts{Matched: devices, Succeeded: served})
	if len(published) != len(acked) || served < 500 {
		t.Errorf("%d devices were sent a message, and %d counted", len(published), served)
	}
}

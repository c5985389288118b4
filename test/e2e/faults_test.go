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
	s.create(s.task("close").Publish("event", "close").Filter(".*").MaxExecution(8).Obj())
	eventually(t, 30*time.Second, "messages", func() (bool, string) { return len(broker.Published()) > 0, "" })
	var task *v1alpha1.BatchTask
	eventually(t, time.Minute, "the task to finish", func() (bool, string) {
		task = s.get("close")
		if task.Status.Devices.Succeeded != 0 {
			t.Fatalf("devices count as succeeded: %s", describe(task))
		}
		return task.Status.Phase.Finished(), describe(task)
	})
	wantCounts(t, task, v1alpha1.TaskPhaseFailed, v1alpha1.DeviceCounts{Matched: 300, Failed: 300})
	if ran := task.Status.CompletionTime.Sub(task.Status.StartTime.Time); ran < 8*time.Second {
		t.Errorf("the task ran for %s of its 8 s", ran)
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
	wantCounts(t, s.finished("healthy", time.Minute), v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: 1000, Succeeded: 1000})
	task := s.finished("poisoned", time.Minute)
	wantCounts(t, task, v1alpha1.TaskPhaseFailed, v1alpha1.DeviceCounts{Matched: 2000, Succeeded: 1999, Failed: 1})
	if f := task.Status.Failures; len(f) != 1 || f[0].DeviceName != poison || f[0].Reason != v1alpha1.ReasonPublishRejected {
		t.Errorf("failures: %+v", f)
	}
}

// Ten small tasks are done before a large one, begun earlier, is half done.
func TestSmallTasksAreNotDelayed(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{AcksPerSecond: 500})
	large := newSite(t, names(5000)...)
	small := []*site{newSite(t, names(10)...), newSite(t, names(10)...)}
	startManager(t, broker.URL())
	large.create(large.task("large").Publish("event", "close").Filter(".*").Obj())
	eventually(t, time.Minute, "the large task to run", func() (bool, string) {
		return len(broker.Published()) > 100, describe(large.get("large"))
	})
	for i := range 10 {
		s := small[i%2]
		s.create(s.task(fmt.Sprintf("small-%d", i)).Publish("event", "close").Filter(".*").Obj())
	}
	for i := range 10 {
		task := small[i%2].finished(fmt.Sprintf("small-%d", i), time.Minute)
		wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: 10, Succeeded: 10})
	}
	if task := large.get("large"); task.Status.Devices.Succeeded >= 2500 {
		t.Errorf("the large task had served %d of 5000 devices when the small ones were done", task.Status.Devices.Succeeded)
	}
	wantCounts(t, large.finished("large", time.Minute), v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: 5000, Succeeded: 5000})
}

// A task is cancelled while it waits, and one while it runs.
func TestCancel(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{AcksPerSecond: 200})
	s := newSite(t, names(2000)...)
	startManager(t, broker.URL(), "--publish-window=100")
	s.create(s.task("waits").Publish("event", "close").Filter(".*").ScheduleAt(time.Now().Add(time.Hour).Unix()).Obj())
	s.create(s.task("runs").Publish("event", "close").Filter(".*").Obj())
	eventually(t, time.Minute, "counts", func() (bool, string) {
		return s.get("waits").Status.Phase == v1alpha1.TaskPhaseWaiting && s.get("runs").Status.Devices.Succeeded > 100, describe(s.get("runs"))
	})
	s.cancel("waits")
	s.cancel("runs")
	wantCounts(t, s.finished("waits", time.Minute), v1alpha1.TaskPhaseCancelled, v1alpha1.DeviceCounts{})
	task := s.finished("runs", time.Minute)
	served := int64(len(broker.Published()))
	wantCounts(t, task, v1alpha1.TaskPhaseCancelled, v1alpha1.DeviceCounts{Matched: 2000, Succeeded: served})
	if served >= 2000 {
		t.Error("the task was not stopped")
	}
}

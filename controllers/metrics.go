package controllers

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"batchtask.dev/operator/api/v1alpha1"
)

// Names of the metrics of tasks.
const (
	MetricTasks       = "batchtask_tasks"                    // gauge, by phase and type
	MetricActiveSlots = "batchtask_active_slots"             // gauge: slots held over all namespaces
	MetricDevices     = "batchtask_devices_total"            // counter, by result and type
	MetricFinished    = "batchtask_tasks_finished_total"     // counter, by phase, reason and type
	MetricStartDelay  = "batchtask_task_start_delay_seconds" // histogram: from status.scheduleTime to the start
	MetricRunTime     = "batchtask_task_duration_seconds"    // histogram: from the start to the end, by type
)

// Metrics are the metrics of tasks. Counters grow when a status has been written,
// so they count what users can see.
type Metrics struct {
	devices    *prometheus.CounterVec
	finished   *prometheus.CounterVec
	startDelay prometheus.Histogram
	runTime    *prometheus.HistogramVec
	state      tally
}

// NewMetrics registers the metrics. The gauges count from the moment of [Setup].
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		devices: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: MetricDevices, Help: "Devices that got a result, by result (succeeded, failed) and task type.",
		}, []string{"result", "type"}),
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: MetricFinished, Help: "Tasks that finished, by phase, reason and task type.",
		}, []string{"phase", "reason", "type"}),
		startDelay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: MetricStartDelay, Help: "Seconds from a task's scheduled time to its start.",
			Buckets: []float64{.01, .025, .05, .1, .2, .5, 1, 2.5, 5, 10, 60},
		}),
		runTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: MetricRunTime, Help: "Seconds from a task's start to its end, by task type.",
			Buckets: []float64{.1, .5, 1, 5, 15, 60, 300, 1800, 3600, 14400, 43200, 86400},
		}, []string{"type"}),
	}
	registry.MustRegister(m.devices, m.finished, m.startDelay, m.runTime, &m.state)
	return m
}

// observeStatus counts what a status write has changed.
func (m *Metrics) observeStatus(before, after *v1alpha1.BatchTask, now time.Time) {
	taskType := string(after.Spec.TaskType)
	was, is := before.Status.Counts(), after.Status.Counts()
	if n := is.Succeeded - was.Succeeded; n > 0 {
		m.devices.WithLabelValues("succeeded", taskType).Add(float64(n))
	}
	if n := is.Failed - was.Failed; n > 0 {
		m.devices.WithLabelValues("failed", taskType).Add(float64(n))
	}
	if before.Status.Phase == after.Status.Phase {
		return
	}
	switch {
	case after.Status.Phase == v1alpha1.TaskPhaseProcessing && after.Status.ScheduleTime != nil:
		m.startDelay.Observe(max(now.Sub(after.Status.ScheduleTime.Time), 0).Seconds())
	case after.Status.Phase.Finished():
		m.finished.WithLabelValues(string(after.Status.Phase), readyReason(after), taskType).Inc()
		if after.Status.StartTime != nil {
			m.runTime.WithLabelValues(taskType).Observe(max(now.Sub(after.Status.StartTime.Time), 0).Seconds())
		}
	}
}

var (
	tasksDesc = prometheus.NewDesc(MetricTasks, "Tasks that exist, by phase and type.", []string{"phase", "type"}, nil)
	slotsDesc = prometheus.NewDesc(MetricActiveSlots, "Slots held by active tasks over all namespaces.", nil, nil)
)

// Describe implements prometheus.Collector.
func (*tally) Describe(descs chan<- *prometheus.Desc) {
	descs <- tasksDesc
	descs <- slotsDesc
}

// Collect implements prometheus.Collector.
func (c *tally) Collect(metrics chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for kind, n := range c.tasks {
		metrics <- prometheus.MustNewConstMetric(tasksDesc, prometheus.GaugeValue, float64(n), kind.phase, kind.taskType)
	}
	metrics <- prometheus.MustNewConstMetric(slotsDesc, prometheus.GaugeValue, float64(c.slots))
}

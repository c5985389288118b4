package controllers

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"

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
}

// NewMetrics registers the metrics. Gauges are computed from the cache behind
// reader when they are read.
func NewMetrics(registry prometheus.Registerer, reader client.Reader) *Metrics {
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
	registry.MustRegister(m.devices, m.finished, m.startDelay, m.runTime, &stateCollector{reader: reader})
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

// stateCollector computes gauges from the cache when they are read.
type stateCollector struct {
	reader client.Reader
}

var (
	tasksDesc = prometheus.NewDesc(MetricTasks, "Tasks that exist, by phase and type.", []string{"phase", "type"}, nil)
	slotsDesc = prometheus.NewDesc(MetricActiveSlots, "Slots held by active tasks over all namespaces.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- tasksDesc
	descs <- slotsDesc
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) //nolint:forbidigo // the interface gives none; the cache answers from memory
	defer cancel()
	var tasks v1alpha1.BatchTaskList
	if err := c.reader.List(ctx, &tasks, client.UnsafeDisableDeepCopy); err != nil {
		metrics <- prometheus.NewInvalidMetric(tasksDesc, err)
		return
	}
	type key struct{ phase, taskType string }
	count := map[key]int{}
	for i := range tasks.Items {
		count[key{string(tasks.Items[i].Status.Phase), string(tasks.Items[i].Spec.TaskType)}]++
	}
	for k, n := range count {
		metrics <- prometheus.MustNewConstMetric(tasksDesc, prometheus.GaugeValue, float64(n), k.phase, k.taskType)
	}
	var quotas v1alpha1.TaskQuotaList
	if err := c.reader.List(ctx, &quotas, client.UnsafeDisableDeepCopy); err != nil {
		metrics <- prometheus.NewInvalidMetric(slotsDesc, err)
		return
	}
	slots := 0
	for i := range quotas.Items {
		slots += len(quotas.Items[i].Status.Slots)
	}
	metrics <- prometheus.MustNewConstMetric(slotsDesc, prometheus.GaugeValue, float64(slots))
}

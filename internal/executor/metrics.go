package executor

import "github.com/prometheus/client_golang/prometheus"

// Names of the metrics.
const (
	MetricPanics         = "batchtask_task_panics_total"
	MetricUnacknowledged = "batchtask_unacknowledged"
	MetricPageBytes      = "batchtask_page_bytes"
)

// Metrics are the measurements of an Executor. Make them with NewMetrics.
type Metrics struct {
	panics         prometheus.Counter
	unacknowledged prometheus.Gauge
	pageBytes      prometheus.Gauge
}

// NewMetrics makes the metrics and registers them; it panics when they are registered
// already. With a nil registerer they are kept but not shown.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: MetricPanics, Help: "Faults in the program that have failed a task; the log has the stack of each.",
		}),
		unacknowledged: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: MetricUnacknowledged, Help: "Messages of running tasks that have given their place in the window back, since they were not acknowledged in time.",
		}),
		pageBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: MetricPageBytes, Help: "Bytes that are set aside for devices that tasks have read ahead.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.panics, m.unacknowledged, m.pageBytes)
	}
	return m
}

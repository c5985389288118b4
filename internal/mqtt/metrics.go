package mqtt

import "github.com/prometheus/client_golang/prometheus"

// Names of the metrics.
const (
	MetricPublishSeconds   = "batchtask_mqtt_publish_seconds"
	MetricInFlight         = "batchtask_mqtt_in_flight"
	MetricConnected        = "batchtask_mqtt_connected"
	MetricConnectionLosses = "batchtask_mqtt_connection_losses_total"
	MetricResends          = "batchtask_mqtt_resends_total"
	MetricRejected         = "batchtask_mqtt_rejected_total"
)

// Metrics are the measurements of a Pool.
type Metrics struct {
	publishSeconds prometheus.Histogram
	inFlight       prometheus.Gauge
	connected      prometheus.Gauge
	losses         prometheus.Counter
	resends        prometheus.Counter
	rejected       prometheus.Counter
}

// NewMetrics makes the metrics and registers them; it panics when they are registered already. With a nil registerer
// they are kept but not shown.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		publishSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    MetricPublishSeconds,
			Help:    "Time from handing a message to a connection until its PUBACK.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 12),
		}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: MetricInFlight,
			Help: "Messages taken for publishing that have no result yet, waiting ones included.",
		}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: MetricConnected,
			Help: "Shared connections to the broker that are up.",
		}),
		losses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: MetricConnectionLosses,
			Help: "Established connections to the broker that were lost or given up.",
		}),
		resends: prometheus.NewCounter(prometheus.CounterOpts{
			Name: MetricResends,
			Help: "Messages sent again because their connection ended before their PUBACK.",
		}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: MetricRejected,
			Help: "Messages reported as refused because the broker drops every connection that sends them.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.publishSeconds, m.inFlight, m.connected, m.losses, m.resends, m.rejected)
	}
	return m
}

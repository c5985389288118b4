package shim

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"batchtask.dev/operator/internal/qcloud"
)

// Names of the metrics of the HTTP front.
const (
	MetricCalls    = "batchtask_shim_calls_total"    // counter, by action, version and code
	MetricSeconds  = "batchtask_shim_call_seconds"   // histogram, by action and version
	MetricInFlight = "batchtask_shim_in_flight"      // gauge
	MetricSecrets  = "batchtask_shim_secrets"        //nolint:gosec // the name of a gauge, by state
	MetricWaiting  = "batchtask_shim_waiting"        // gauge
	MetricRefused  = "batchtask_shim_refused_total"  // counter, by limit
	MetricReplayed = "batchtask_shim_replayed_total" // counter
)

// Limits of the HTTP front, by the value of the label of [MetricRefused].
const (
	limitRate     = "rate"     // calls a second of an account
	limitWaiting  = "waiting"  // calls of an account that wait for a place
	limitPlaces   = "places"   // the time that a call waits for a place
	limitBodies   = "bodies"   // memory for bodies
	limitFailures = "failures" // failures of an address
)

// Metrics are the metrics of the HTTP front. Their labels have few values: an
// action that a version does not know is "unknown", and a code is one of the
// documented ones, "0" for success.
type Metrics struct {
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
	secrets  *prometheus.GaugeVec
	waiting  prometheus.Gauge
	refused  *prometheus.CounterVec
	replayed prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: MetricCalls, Help: "Calls answered, by action, API version and code (0 for success).",
		}, []string{"action", "version", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: MetricSeconds, Help: "Seconds from a call's headers to its answer, by action and API version.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15},
		}, []string{"action", "version"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: MetricInFlight, Help: "Calls being worked on."}),
		secrets: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: MetricSecrets, Help: "Secrets with credentials, by state (accepted, duplicate, invalid).",
		}, []string{"state"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Name: MetricWaiting, Help: "Calls that wait for one of the places."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: MetricRefused, Help: "Calls that were refused for a limit of the HTTP front, by limit (rate, waiting, places, bodies, failures).",
		}, []string{"limit"}),
		replayed: prometheus.NewCounter(prometheus.CounterOpts{Name: MetricReplayed, Help: "TC3 calls that were answered as an equal one before them."}),
	}
	registry.MustRegister(m.calls, m.seconds, m.inFlight, m.secrets, m.waiting, m.refused, m.replayed)
	for _, limit := range []string{limitRate, limitWaiting, limitPlaces, limitBodies, limitFailures} {
		m.refused.WithLabelValues(limit)
	}
	return m
}

func (m *Metrics) observe(action string, version qcloud.Version, code string, took time.Duration) {
	m.calls.WithLabelValues(action, version.String(), code).Inc()
	m.seconds.WithLabelValues(action, version.String()).Observe(took.Seconds())
}

package service

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"batchtask.dev/operator/internal/shadow"
)

// Names of the metrics.
const (
	MetricMessages    = "batchtask_shadow_messages_total"
	MetricDropped     = "batchtask_shadow_dropped_total"
	MetricRefused     = "batchtask_shadow_refused_total"
	MetricAnswersLost = "batchtask_shadow_answers_lost_total"
	MetricQueueDepth  = "batchtask_shadow_queue_depth"
	MetricSeconds     = "batchtask_shadow_seconds"
)

// Why messages are dropped: acknowledged, and not answered.
const (
	dropTopic    = "topic"
	dropRetained = "retained"
	dropRate     = "rate"
)

// Why messages are answered 5100 without having been tried for RetryTime.
const (
	refusedAway   = "away"
	refusedHeldUp = "held-up"
	refusedDevice = "device"
	refusedTenant = "namespace"
	refusedFull   = "full"
)

// Metrics are the measurements of a Service.
type Metrics struct {
	messages    *prometheus.CounterVec
	dropped     *prometheus.CounterVec
	refused     *prometheus.CounterVec
	answersLost prometheus.Counter
	queueDepth  prometheus.Gauge
	seconds     *prometheus.HistogramVec
}

// NewMetrics makes the metrics and registers them; it panics when they are
// registered already. With a nil registerer they are kept but not shown.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: MetricMessages,
			Help: "Messages of devices that were answered, by their type (get, update, other) and the result of the answer.",
		}, []string{"type", "result"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: MetricDropped,
			Help: "Messages that were dropped without an answer, by reason: topic (not one of a device), retained, rate (over the limit of the device).",
		}, []string{"reason"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: MetricRefused,
			Help: "Messages that were answered 5100 before they had been tried for the whole time, by reason: away (the store of the product fails), held-up (it is slow, and acknowledgements of others waited), device, namespace (over its share of the queue), full.",
		}, []string{"reason"}),
		answersLost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: MetricAnswersLost,
			Help: "Answers that could not be sent because the connection had ended.",
		}),
		queueDepth: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: MetricQueueDepth,
			Help: "Messages that were taken and are not answered yet.",
		}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    MetricSeconds,
			Help:    "Time from the arrival of a message until its answer, by its type.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 12),
		}, []string{"type"}),
	}
	for _, reason := range []string{dropTopic, dropRetained, dropRate} {
		m.dropped.WithLabelValues(reason)
	}
	for _, reason := range []string{refusedAway, refusedHeldUp, refusedDevice, refusedTenant, refusedFull} {
		m.refused.WithLabelValues(reason)
	}
	if registerer != nil {
		registerer.MustRegister(m.messages, m.dropped, m.refused, m.answersLost, m.queueDepth, m.seconds)
	}
	return m
}

func (m *Metrics) answered(message shadow.Message, result shadow.Result, seconds float64) {
	kind := message.Type
	if kind == "" {
		kind = "other"
	}
	m.messages.WithLabelValues(kind, strconv.Itoa(int(result))).Inc()
	m.seconds.WithLabelValues(kind).Observe(seconds)
}

package ingest

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	messages   *prometheus.CounterVec
	dropped    *prometheus.CounterVec
	rows       prometheus.Counter
	flush      prometheus.Histogram
	cloneSigns prometheus.Counter
	results    *prometheus.CounterVec
	enrolments *prometheus.CounterVec
	unsent     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	f := promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "ingest", Name: name, Help: help}, labels)
	}
	return metrics{
		messages:   counter("messages_total", "Messages that devices published.", "kind"),
		dropped:    counter("dropped_total", "Messages that were not stored.", "kind", "reason"),
		results:    counter("results_total", "Terminal results, by the code of the acknowledgement.", "code"),
		enrolments: counter("enrolments_total", "Enrolment requests by outcome.", "outcome"),
		rows:       f.NewCounter(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "ingest", Name: "flushed_rows_total", Help: "Devices whose presence was written."}),
		flush: f.NewHistogram(prometheus.HistogramOpts{Namespace: "kernex", Subsystem: "ingest", Name: "flush_seconds", Help: "Time of one flush of heartbeats.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		cloneSigns: f.NewCounter(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "ingest", Name: "clone_signs_total", Help: "Births that look like a copy of another device."}),
		unsent:     f.NewCounter(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "ingest", Name: "unsent_total", Help: "Acknowledgements and replies that the broker did not take."}),
	}
}

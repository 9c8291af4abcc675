package httpauth

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	logins *prometheus.CounterVec
	looks  *prometheus.CounterVec
	swept  prometheus.Counter
	took   prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	return &metrics{
		logins: f.NewCounterVec(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "authorizer", Name: "logins_total",
			Help: "Logins, by outcome; cached ones are those that an earlier answer decided."}, []string{"outcome"}),
		looks: f.NewCounterVec(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "authorizer", Name: "looks_total",
			Help: "Looks at changed credentials, by result."}, []string{"result"}),
		swept: f.NewCounter(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "authorizer", Name: "swept_total",
			Help: "Connections ended because their credential changed and no kick had ended them."}),
		took: f.NewHistogram(prometheus.HistogramOpts{Namespace: "kernex", Subsystem: "authorizer", Name: "answer_seconds",
			Help: "Time an orchestrator took to answer.", Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 3}}),
	}
}

package api

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(reg *prometheus.Registry) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kernex_api_requests_total", Help: "Requests to the admin API by route, method and status.",
		}, []string{"route", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kernex_api_request_seconds", Help: "Time from a request's headers to its answer's end.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
		}, []string{"route"}),
	}
	reg.MustRegister(m.requests, m.seconds)
	return m
}

// observe counts a request. Routes are patterns, so that no stranger makes new
// series; a method that no route has is counted as other.
func (m *metrics) observe(method, route string, status int, took time.Duration) {
	if route == "" {
		route, method = "other", "other"
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	if route != "other" {
		m.seconds.WithLabelValues(route).Observe(took.Seconds())
	}
}

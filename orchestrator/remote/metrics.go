package remote

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/kernexhq/kernex/pkg/mqttclient"
)

type metrics struct {
	published *prometheus.CounterVec
	failures  *prometheus.CounterVec
	connects  prometheus.Counter
	received  prometheus.Counter
	lostKicks prometheus.Counter
	dropped   atomic.Uint64 // of connections that have ended
}

func newMetrics(t *Transport, r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "kernex", Subsystem: "transport", Name: name, Help: help}
	}
	m := &metrics{
		published: f.NewCounterVec(prometheus.CounterOpts(opts("published_total", "Messages handed to the broker, by result.")), []string{"result"}),
		failures:  f.NewCounterVec(prometheus.CounterOpts(opts("failures_total", "Connections to the broker that failed or were lost, by reason.")), []string{"reason"}),
		connects:  f.NewCounter(prometheus.CounterOpts(opts("connects_total", "Connections to the broker that came up."))),
		received:  f.NewCounter(prometheus.CounterOpts(opts("received_total", "Messages received from the broker."))),
		lostKicks: f.NewCounter(prometheus.CounterOpts(opts("kicks_lost_total", "Disconnections that the broker was not asked for."))),
	}
	f.NewGaugeFunc(prometheus.GaugeOpts(opts("connections", "Connections to the broker that are up.")), func() float64 { return float64(t.Up()) })
	f.NewCounterFunc(prometheus.CounterOpts(opts("dropped_total", "Messages dropped because ingest was behind.")), func() float64 {
		n := m.dropped.Load()
		for i := range t.slots {
			if c := t.slots[i].client.Load(); c != nil {
				n += c.Dropped()
			}
		}
		return float64(n)
	})
	return m
}

// gone keeps the count of a connection that has ended.
func (m *metrics) gone(c *mqttclient.Client) { m.dropped.Add(c.Dropped()) }

func (m *metrics) failed(refused bool) {
	reason := "network"
	if refused {
		reason = "refused"
	}
	m.failures.WithLabelValues(reason).Inc()
}

package broker

import (
	"errors"
	"os"
	"sync/atomic"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"
)

// Why a socket, login, packet or topic was refused: the label of one counter.
const (
	reasonAccept     = "accept_error"
	reasonClosing    = "stopping"
	reasonFull       = "too_many_sockets"
	reasonWaiting    = "too_many_before_connect"
	reasonSilent     = "no_connect"
	reasonNotConnect = "not_connect"
	reasonTooLarge   = "packet_too_large"
	reasonMalformed  = "malformed"
	reasonPanic      = "panic"
	reasonClientID   = "client_id"
	reasonWill       = "will"
	reasonAuth       = "credential"
	reasonAuthAway   = "authorizer_unavailable"
	reasonRate       = "rate"
	reasonTakeover   = "takeover_stuck"
	reasonQoS        = "qos2"
	reasonAlias      = "topic_alias"
	reasonRetain     = "retain"
	reasonPayload    = "payload_too_large"
	reasonPublish    = "publish"
	reasonSubscribe  = "subscribe"
	reasonRestricted = "restricted"
	reasonKicked     = "kicked"
)

type metrics struct {
	accepted   prometheus.Counter
	refusals   *prometheus.CounterVec
	slow       prometheus.Counter
	unkept     prometheus.Counter
	collectors []prometheus.Collector
}

func newMetrics(b *Broker) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "broker", Name: name, Help: help})
	}
	// Mochi counts messages itself; reading its numbers costs the hot path nothing.
	read := func(name, help string, n *int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "broker", Name: name, Help: help},
			func() float64 { return float64(atomic.LoadInt64(n)) })
	}
	info := b.server.Info
	m := &metrics{
		accepted: counter("connections_total", "Sockets accepted."),
		slow:     counter("messages_slow_total", "Messages dropped because the subscriber's socket did not drain."),
		unkept:   counter("states_unkept_total", "Device states not kept or not replayed because a bound was reached."),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "kernex", Subsystem: "broker", Name: "refused_total", Help: "Sockets, logins, packets and topics refused, by reason.",
		}, []string{"reason"}),
	}
	m.collectors = []prometheus.Collector{
		m.accepted, m.slow, m.unkept, m.refusals,
		read("messages_received_total", "PUBLISH packets received, those of this process included.", &info.MessagesReceived),
		read("messages_sent_total", "PUBLISH packets sent.", &info.MessagesSent),
		read("messages_dropped_total", "Messages dropped because a subscriber's queue was full.", &info.MessagesDropped),
		read("inflight_dropped_total", "QoS 1 messages dropped because too many waited for their PUBACK.", &info.InflightDropped),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "kernex", Subsystem: "broker", Name: "clients", Help: "Clients logged in."},
			func() float64 { return float64(b.sessions.count()) }),
	}
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range m.collectors {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) refuse(reason string) { m.refusals.WithLabelValues(reason).Inc() }

// countEnd counts why a connection ended, if that was a refusal that the hook
// did not see: mochi's own checks, and whatever happened before the login.
func (b *Broker) countEnd(s *session, err error) {
	var crash *panicked
	var code packets.Code
	switch {
	case errors.As(err, &crash):
		b.metrics.refuse(reasonPanic)
		b.log.Error().Interface("panic", crash.value).Bytes("stack", crash.stack).Msg("connection closed: a packet made the broker panic")
	case errors.Is(err, packets.ErrPacketTooLarge):
		b.metrics.refuse(reasonTooLarge)
	case errors.Is(err, packets.ErrProtocolViolationRequireFirstConnect):
		b.metrics.refuse(reasonNotConnect)
	case s == nil && errors.Is(err, os.ErrDeadlineExceeded):
		b.metrics.refuse(reasonSilent)
	case errors.As(err, &code) && (code.Code == packets.ErrMalformedPacket.Code || code.Code == packets.ErrProtocolViolation.Code):
		b.metrics.refuse(reasonMalformed)
	}
}

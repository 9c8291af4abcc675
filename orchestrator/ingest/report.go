package ingest

import (
	"context"
	"encoding/json"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// batchLimit bounds the results of one transaction: they share one wait for the
// disk.
const batchLimit = 64

// work takes states, results and requests in their order; results that follow
// each other are one transaction.
func (i *Ingest) work(ctx context.Context, batch []message) {
	var devices []string
	var results []protocol.Result
	flush := func() {
		if len(results) > 0 {
			i.results(ctx, devices, results)
			devices, results = nil, nil
		}
	}
	for _, m := range batch {
		switch m.kind {
		case protocol.KindResult:
			var r protocol.Result
			if err := decode(m, &r); err != nil {
				i.invalid(m, err)
				continue
			}
			devices, results = append(devices, m.id), append(results, r)
		case protocol.KindState:
			flush()
			i.state(ctx, m)
		default:
			flush()
			i.request(ctx, m)
		}
	}
	flush()
}

func (i *Ingest) invalid(m message, err error) {
	i.drop(m.kind, "invalid")
	i.cfg.Log.Debug().Err(err).Str("device", m.id).Str("kind", string(m.kind)).Msg("message refused")
}

// failed counts a message that Postgres did not take; the device repeats it.
func (i *Ingest) failed(kind protocol.Kind, device string, err error) {
	i.drop(kind, "error")
	i.cfg.Log.Error().Err(err).Str("device", device).Str("kind", string(kind)).Msg("store message; the device repeats it")
}

func (i *Ingest) state(ctx context.Context, m message) {
	var s protocol.State
	if err := decode(m, &s); err != nil {
		i.invalid(m, err)
		return
	}
	op, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	out, err := i.cfg.Store.ApplyState(op, m.id, s, i.events.allow)
	switch {
	case err != nil:
		i.failed(m.kind, m.id, err)
		return
	case out.Refused:
		i.drop(m.kind, "refused")
		return
	case out.CloneSign:
		i.metrics.cloneSigns.Inc()
		i.cfg.Log.Warn().Str("device", m.id).Int64("session", s.Session).Bool("quarantined", out.Quarantined).Msg("a birth that looks like a copy of this device")
	}
	if out.Stale {
		i.drop(m.kind, "stale")
	}
	i.ack(ctx, m.id, protocol.Ack{})
}

func (i *Ingest) request(ctx context.Context, m message) {
	var r protocol.Request
	if err := decode(m, &r); err != nil {
		i.invalid(m, err)
		return
	}
	if !i.wishes.allow(m.id) {
		i.drop(m.kind, "rate")
		return
	}
	op, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if r.Want == protocol.WantCertificate {
		i.renew(op, m)
		return
	}
	command := ""
	if r.Want == protocol.WantURL {
		command = r.Command
	}
	if err := i.cfg.Store.CommandsDue(op, m.id, command); err != nil {
		i.failed(m.kind, m.id, err)
	}
}

// renew answers a request for a certificate; where there is none to be had,
// with silence.
func (i *Ingest) renew(ctx context.Context, m message) {
	if i.cfg.Certifier == nil {
		i.drop(m.kind, "refused")
		return
	}
	cert, _, err := i.cfg.Certifier.Certify(ctx, m.id)
	switch code := fleet.ErrorCode(err); {
	case err == nil:
		i.ack(ctx, m.id, protocol.Ack{Certificate: cert})
	case code == fleet.CodeForbidden || code == fleet.CodeNotFound:
		i.drop(m.kind, "refused")
	default:
		i.failed(m.kind, m.id, err)
	}
}

// results stores results and then acknowledges the terminal ones. If the whole
// fails, one of them may be the reason: each is tried alone.
func (i *Ingest) results(ctx context.Context, devices []string, results []protocol.Result) {
	op, cancel := context.WithTimeout(ctx, opTimeout)
	acks, err := i.cfg.Store.ApplyResults(op, devices, results)
	cancel()
	if err != nil && len(results) > 1 && fleet.ErrorCode(err) != fleet.CodeUnavailable {
		for n := range results {
			i.results(ctx, devices[n:n+1], results[n:n+1])
		}
		return
	}
	if err != nil {
		for _, id := range devices {
			i.failed(protocol.KindResult, id, err)
		}
		return
	}
	byDevice := map[string][]protocol.ResultAck{}
	var order []string
	for n, a := range acks {
		id := devices[n]
		if a == nil {
			continue
		}
		i.metrics.results.WithLabelValues(string(a.Code)).Inc()
		if byDevice[id] == nil {
			order = append(order, id)
		}
		byDevice[id] = append(byDevice[id], *a)
	}
	for _, id := range order {
		i.ack(ctx, id, protocol.Ack{Results: byDevice[id]})
	}
}

// ack tells a device what was stored, and the time.
func (i *Ingest) ack(ctx context.Context, device string, a protocol.Ack) {
	a.Time = time.Now().Unix()
	i.publish(ctx, i.cfg.Topics.Device(device, protocol.KindAck), a)
}

// publish sends one message; whoever waits for it asks again if it is lost.
func (i *Ingest) publish(ctx context.Context, topic string, v any) {
	b, err := json.Marshal(v)
	if err == nil {
		op, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		err = i.cfg.Publisher.Publish(op, topic, b, 1, false)
	}
	if err != nil {
		i.metrics.unsent.Inc()
		i.cfg.Log.Debug().Err(err).Str("topic", topic).Msg("message not sent")
	}
}

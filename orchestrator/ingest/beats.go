package ingest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// beats holds one merged beat a device until the next flush.
type beats struct {
	max  int
	rows int
	full chan struct{} // rows wait

	mu sync.Mutex
	m  map[string]fleet.Beat
}

func newBeats(limit, rows int) *beats {
	return &beats{max: limit, rows: rows, full: make(chan struct{}, 1), m: map[string]fleet.Beat{}}
}

// add merges a beat into what waits: what the newer one leaves out keeps its
// value. It reports false if there is no room for another device.
func (b *beats) add(n fleet.Beat) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, ok := b.m[n.DeviceID]
	if !ok && len(b.m) >= b.max {
		return false
	}
	if ok {
		n = merge(old, n)
	}
	b.m[n.DeviceID] = n
	if len(b.m) == b.rows {
		select {
		case b.full <- struct{}{}:
		default:
		}
	}
	return true
}

// merge returns old with n on top. A heartbeat counts if (session, seq) is
// newer and its session has not ended; the end of a session counts until a
// heartbeat of a newer one.
func merge(old, n fleet.Beat) fleet.Beat {
	out := old
	if n.Session > old.Session || n.Session == old.Session && n.Seq > old.Seq {
		out = n
		keep(&out.AgentVersion, old.AgentVersion)
		keep(&out.Status, old.Status)
		keep(&out.UptimeS, old.UptimeS)
		keep(&out.CPUPct, old.CPUPct)
		keep(&out.MemoryMB, old.MemoryMB)
		keep(&out.DiskPct, old.DiskPct)
	}
	out.Gone = max(old.Gone, n.Gone)
	if out.Gone < out.Session {
		out.Gone = 0
	}
	return out
}

func keep[T comparable](v *T, old T) {
	var zero T
	if *v == zero {
		*v = old
	}
}

// take removes and returns at most n beats, sorted by device so that every
// writer locks rows in the same order.
func (b *beats) take(n int) []fleet.Beat {
	b.mu.Lock()
	out := make([]fleet.Beat, 0, min(n, len(b.m)))
	for id, v := range b.m {
		if len(out) == n {
			break
		}
		out = append(out, v)
		delete(b.m, id)
	}
	b.mu.Unlock()
	slices.SortFunc(out, func(x, y fleet.Beat) int { return strings.Compare(x.DeviceID, y.DeviceID) })
	return out
}

// putBack returns beats that could not be written; what came meanwhile is
// newer.
func (b *beats) putBack(list []fleet.Beat) (lost int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, old := range list {
		n, ok := b.m[old.DeviceID]
		switch {
		case ok:
			b.m[old.DeviceID] = merge(old, n)
		case len(b.m) < b.max:
			b.m[old.DeviceID] = old
		default:
			lost++
		}
	}
	return lost
}

// presence takes a heartbeat, a will or a goodbye.
func (i *Ingest) presence(_ context.Context, batch []message) {
	for _, m := range batch {
		beat, err := decodeBeat(m)
		if err != nil {
			i.drop(m.kind, "invalid")
			continue
		}
		if beat != (fleet.Beat{}) && !i.beats.add(beat) {
			i.drop(m.kind, "queue_full")
		}
	}
}

func decodeBeat(m message) (fleet.Beat, error) {
	if m.kind == protocol.KindPresence {
		var p protocol.Presence
		if err := decode(m, &p); err != nil || p.Online { // online is said by births
			return fleet.Beat{}, err
		}
		return fleet.Beat{DeviceID: m.id, Gone: p.Session}, nil
	}
	var h protocol.Heartbeat
	if err := decode(m, &h); err != nil {
		return fleet.Beat{}, err
	}
	return fleet.Beat{
		DeviceID: m.id, Session: h.Session, Seq: h.Seq, StateRev: h.StateRev, AgentVersion: h.AgentVersion, Status: h.Status,
		UptimeS: h.UptimeS, CPUPct: h.CPUPct, MemoryMB: h.MemoryMB, DiskPct: h.DiskPct,
	}, nil
}

// decode reads a message and checks its bounds.
func decode[T interface{ Validate() error }](m message, v *T) error {
	if err := protocol.Decode(m.kind, m.payload, v); err != nil {
		return err
	}
	return (*v).Validate()
}

// flusher writes what waits every FlushEvery, or as soon as FlushRows wait.
func (i *Ingest) flusher(ctx context.Context) {
	tick := time.NewTicker(i.cfg.FlushEvery)
	defer tick.Stop()
	work := context.WithoutCancel(ctx)
	for {
		select {
		case <-ctx.Done():
			i.flush(work)
			return
		case <-tick.C:
		case <-i.beats.full:
		}
		i.flush(work)
	}
}

func (i *Ingest) flush(ctx context.Context) {
	for {
		list := i.beats.take(i.cfg.FlushRows)
		if len(list) == 0 {
			return
		}
		start := time.Now()
		op, cancel := context.WithTimeout(ctx, opTimeout)
		want, err := i.cfg.Store.FlushBeats(op, list, i.events.allow)
		cancel()
		if err != nil {
			lost := i.beats.putBack(list)
			i.metrics.dropped.WithLabelValues(string(protocol.KindHeartbeat), "error").Add(float64(lost))
			i.cfg.Log.Error().Err(err).Int("devices", len(list)).Int("lost", lost).Msg("write heartbeats; they wait for the next flush")
			return
		}
		i.metrics.flush.Observe(time.Since(start).Seconds())
		i.metrics.rows.Add(float64(len(list)))
		for _, id := range want {
			if i.asks.allow(id) {
				i.ack(ctx, id, protocol.Ack{Want: []string{protocol.WantState}})
			}
		}
		if len(list) < i.cfg.FlushRows {
			return
		}
	}
}

package broker

import (
	"bytes"
	"context"
	"strings"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/time/rate"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Bounds of the kept device states.
const (
	maxStates     = 1 << 18 // devices; about 100 MB at 400 bytes each
	replayRate    = 5000    // messages a second and worker: 100,000 devices in 20 s
	replayWorkers = 2       // monitors that are served at the same time
	replayQueue   = 64      // subscriptions that wait for a worker
)

// fleetStates keeps the last fleet/devices/{id} message of each device and
// sends them to a client that subscribes. Mochi's own retained messages would
// do, but it copies all of them every second: half a core at 100,000.
type fleetStates struct {
	b      *Broker
	prefix string
	queue  chan replay

	mu sync.RWMutex
	by map[string]state // by topic
}

type state struct {
	payload []byte
	rev     uint64 // counts the messages of this topic
}

type replay struct {
	s      *session
	filter string
}

func newFleetStates(b *Broker) *fleetStates {
	return &fleetStates{b: b, prefix: b.cfg.Topics.FleetDevice(""), queue: make(chan replay, replayQueue), by: make(map[string]state)}
}

// keep remembers a retained message, or forgets the topic when the payload is
// empty, and reports whether the topic is one that is kept here.
func (f *fleetStates) keep(topic string, payload []byte) bool {
	id, ok := strings.CutPrefix(topic, f.prefix)
	if !ok || !fleet.ValidDeviceID(id) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	old, had := f.by[topic]
	switch {
	case len(payload) == 0:
		delete(f.by, topic)
	case !had && len(f.by) >= maxStates:
		f.b.metrics.unkept.Inc()
	default:
		f.by[strings.Clone(topic)] = state{payload: bytes.Clone(payload), rev: old.rev + 1}
	}
	return true
}

func (f *fleetStates) get(topic string) (state, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	s, ok := f.by[topic]
	return s, ok
}

// topics returns the kept topics that filter matches.
func (f *fleetStates) topics(filter string) []string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if _, ok := f.by[filter]; ok {
		return []string{filter}
	}
	var out []string
	for t := range f.by {
		if covers(filter, t, "") {
			out = append(out, t)
		}
	}
	return out
}

// subscribed queues the replay for a new subscription. Shared ones get none,
// as in MQTT. When too many wait, the client gets only what changes from now
// on, which is counted.
func (f *fleetStates) subscribed(s *session, filter string) {
	if _, shared := cutShare(filter); shared {
		return
	}
	if !strings.HasPrefix(filter, f.prefix) && !covers(filter, f.prefix+"x", "") {
		return
	}
	select {
	case f.queue <- replay{s: s, filter: filter}:
	default:
		f.b.metrics.unkept.Inc()
	}
}

// replay serves subscriptions until ctx ends.
func (f *fleetStates) replay(ctx context.Context) {
	pace := rate.NewLimiter(replayRate, 100)
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-f.queue:
			for _, topic := range f.topics(r.filter) {
				if pace.Wait(ctx) != nil || !f.send(r.s, topic) {
					break
				}
			}
		}
	}
}

// send writes the last state of one topic at QoS 0, straight to the socket: a
// monitor that reads slowly slows its own replay. A live message may overtake
// it, so it looks again whether what it sent is still the last.
func (f *fleetStates) send(s *session, topic string) bool {
	for rev := uint64(0); ; {
		if !s.conn.socket.drain(f.b.stopping) {
			return false
		}
		st, ok := f.get(topic)
		if !ok || st.rev == rev {
			return true
		}
		rev = st.rev
		err := s.cl.WritePacket(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: true},
			TopicName:   topic,
			Payload:     st.payload,
		})
		if err != nil {
			return false
		}
	}
}

package broker

import (
	"slices"
	"sync"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// shares deals messages out within shared subscriptions.
type shares struct {
	mu   sync.Mutex
	next map[string]uint // by filter, group included
}

// turn returns the next number of a group's rotation. Filters of groups that
// are gone are dropped once there are more than 1,024.
func (s *shares) turn(filter string) uint {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil || len(s.next) > 1024 {
		s.next = make(map[string]uint)
	}
	n := s.next[filter]
	s.next[filter] = n + 1
	return n
}

// OnSelectSubscribers picks one member of each group, in turn and only among
// those that are connected: mochi picks any that has not unsubscribed.
func (h *hook) OnSelectSubscribers(subs *mqtt.Subscribers, _ packets.Packet) *mqtt.Subscribers {
	for filter, members := range subs.Shared {
		live := make([]string, 0, len(members))
		for id := range members {
			if cl, ok := h.b.server.Clients.Get(id); ok && !cl.Closed() {
				live = append(live, id)
			}
		}
		if len(live) == 0 {
			continue
		}
		slices.Sort(live)
		id := live[h.b.shares.turn(filter)%uint(len(live))]
		sub := members[id]
		if other, ok := subs.SharedSelected[id]; ok {
			sub = other.Merge(sub)
		}
		subs.SharedSelected[id] = sub
	}
	return subs
}

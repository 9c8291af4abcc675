package broker

import (
	"strings"

	"github.com/kernexhq/kernex/pkg/protocol"
)

// Rule allows one role one kind of access to one pattern of topics.
type Rule struct {
	Role       Role
	Write      bool   // publish; else subscribe and receive
	Pattern    string // below the root; {id} is the grant's own id, + and # as in MQTT
	Restricted bool   // also for devices that are pending or quarantined
	Share      bool   // also behind $share/<group>/
}

// rules is the whole access policy: what is not in it is denied.
var rules = []Rule{
	{Role: RoleDevice, Write: true, Pattern: "devices/{id}/heartbeat", Restricted: true},
	{Role: RoleDevice, Write: true, Pattern: "devices/{id}/state"},
	{Role: RoleDevice, Write: true, Pattern: "devices/{id}/result"},
	{Role: RoleDevice, Write: true, Pattern: "devices/{id}/log"},
	{Role: RoleDevice, Write: true, Pattern: "devices/{id}/request"},
	{Role: RoleDevice, Write: true, Pattern: "devices/{id}/presence"},
	{Role: RoleDevice, Pattern: "devices/{id}/ack", Restricted: true},
	{Role: RoleDevice, Pattern: "devices/{id}/command"},

	{Role: RoleEnroll, Write: true, Pattern: "enroll/{id}/request"},
	{Role: RoleEnroll, Pattern: "enroll/{id}/reply"},

	{Role: RoleClock, Pattern: "time"},

	{Role: RoleMonitor, Pattern: "fleet/#"},

	{Role: RoleService, Pattern: "#", Share: true},
	{Role: RoleService, Write: true, Pattern: "devices/+/command"},
	{Role: RoleService, Write: true, Pattern: "devices/+/ack"},
	{Role: RoleService, Write: true, Pattern: "enroll/+/reply"},
	{Role: RoleService, Write: true, Pattern: "fleet/#"},
	{Role: RoleService, Write: true, Pattern: "control/#"},
	{Role: RoleService, Write: true, Pattern: "time"},
}

// Rules returns a copy of the access policy, from which the access lists of
// other brokers are made.
func Rules() []Rule { return append([]Rule(nil), rules...) }

// Allow reports whether a grant may publish to topic (write) or subscribe to
// the filter, or be delivered the topic, called topic. Topics are compared byte
// by byte; a filter is allowed only if all that it can match is.
func Allow(t protocol.Topics, g Grant, topic string, write bool) bool {
	topic, shared := cutShare(topic)
	if shared && write {
		return false
	}
	if len(topic) <= len(t.Root) || topic[:len(t.Root)] != t.Root || topic[len(t.Root)] != '/' {
		return false
	}
	topic = topic[len(t.Root)+1:]
	for i := range rules {
		r := &rules[i]
		if r.Role == g.Role && r.Write == write && (!g.Restricted || r.Restricted) && (!shared || r.Share) && covers(r.Pattern, topic, g.ID) {
			return true
		}
	}
	return false
}

// cutShare removes $share/<group>/ in any case: mochi compares it so.
func cutShare(filter string) (rest string, shared bool) {
	const prefix = "$share/"
	if len(filter) < len(prefix) || !strings.EqualFold(filter[:len(prefix)], prefix) {
		return filter, false
	}
	_, rest, _ = strings.Cut(filter[len(prefix):], "/")
	return rest, true
}

// covers reports whether pattern matches every topic that filter matches; a
// topic is a filter that matches itself. A level {id} of the pattern stands for
// id, unless id is empty.
func covers(pattern, filter, id string) bool {
	for {
		p, prest, pmore := strings.Cut(pattern, "/")
		f, frest, fmore := strings.Cut(filter, "/")
		switch {
		case p == "#":
			return true
		case f == "#":
			return false
		case p == "{id}" && id != "":
			if f != id {
				return false
			}
		case p == "+":
		case f != p:
			return false
		}
		if pmore != fmore {
			// fleet/# also matches fleet itself, as in MQTT.
			return pmore && prest == "#"
		}
		if !pmore {
			return true
		}
		pattern, filter = prest, frest
	}
}

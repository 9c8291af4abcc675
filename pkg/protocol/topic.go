// Package protocol is the MQTT contract between devices, the orchestrator and
// monitoring tools: topics, messages, their caps and the signing of commands.
// It does no I/O. docs/protocol.md and schema/messages say the same in words
// and in JSON Schema.
package protocol

import (
	"strings"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// DefaultRoot is the topic prefix when none is configured.
const DefaultRoot = "kernex/v1"

// Kind says what a topic carries: the last level of a device or enrolment
// topic, or one of the fleet topics.
type Kind string

// The kinds of topics.
const (
	KindHeartbeat     Kind = "heartbeat"
	KindState         Kind = "state"
	KindResult        Kind = "result"
	KindLog           Kind = "log"
	KindRequest       Kind = "request"
	KindPresence      Kind = "presence"
	KindCommand       Kind = "command"
	KindAck           Kind = "ack"
	KindEnrollRequest Kind = "enroll/request"
	KindEnrollReply   Kind = "enroll/reply"
)

// Topics builds and parses topic names under one root.
type Topics struct{ Root string }

// NewTopics returns the topics under root; "" means DefaultRoot.
func NewTopics(root string) Topics {
	if root == "" {
		root = DefaultRoot
	}
	return Topics{Root: strings.Trim(root, "/")}
}

// Device returns the topic of kind k of a device.
func (t Topics) Device(id string, k Kind) string { return t.Root + "/devices/" + id + "/" + string(k) }

// EnrollRequest returns the topic on which a new device sends its requests.
func (t Topics) EnrollRequest(nonce string) string { return t.Root + "/enroll/" + nonce + "/request" }

// EnrollReply returns the topic on which a new device gets its replies.
func (t Topics) EnrollReply(nonce string) string { return t.Root + "/enroll/" + nonce + "/reply" }

// FleetDevice returns the monitoring topic of a device.
func (t Topics) FleetDevice(id string) string { return t.Root + "/fleet/devices/" + id }

// FleetDeployment returns the monitoring topic of a deployment.
func (t Topics) FleetDeployment(id string) string { return t.Root + "/fleet/deployments/" + id }

// FleetSummary returns the topic of the fleet's totals.
func (t Topics) FleetSummary() string { return t.Root + "/fleet/summary" }

// FleetEvents returns the topic of numbered CloudEvents.
func (t Topics) FleetEvents() string { return t.Root + "/fleet/events" }

// FleetFilter matches everything that a monitor may read.
func (t Topics) FleetFilter() string { return t.Root + "/fleet/#" }

// Time returns the topic of the server's clock.
func (t Topics) Time() string { return t.Root + "/time" }

// Kick returns the control topic that ends a device's connection. Only the
// orchestrator's session may publish it; the broker acts on it and delivers it
// to nobody.
func (t Topics) Kick(id string) string { return t.Root + "/control/kick/" + id }

// ParseKick returns the device id of a Kick topic.
func (t Topics) ParseKick(topic string) (id string, ok bool) {
	id, ok = strings.CutPrefix(topic, t.Root+"/control/kick/")
	return id, ok && fleet.ValidDeviceID(id)
}

// Parse splits a device or enrolment topic into its kind and the device id or
// nonce. ok is false for every other topic.
func (t Topics) Parse(topic string) (kind Kind, id string, ok bool) {
	rest, ok := strings.CutPrefix(topic, t.Root+"/")
	if !ok {
		return "", "", false
	}
	level := strings.Split(rest, "/")
	if len(level) != 3 {
		return "", "", false
	}
	switch level[0] {
	case "devices":
		kind = Kind(level[2])
		switch kind {
		case KindHeartbeat, KindState, KindResult, KindLog, KindRequest, KindPresence, KindCommand, KindAck:
			return kind, level[1], fleet.ValidDeviceID(level[1])
		}
	case "enroll":
		kind = Kind("enroll/" + level[2])
		if kind == KindEnrollRequest || kind == KindEnrollReply {
			return kind, level[1], ValidNonce(level[1])
		}
	}
	return "", "", false
}

// ValidNonce reports whether s is an enrolment nonce: 128 bits in lower hex.
func ValidNonce(s string) bool {
	if len(s) != 32 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

// Cap returns the largest payload of kind, in bytes.
func (k Kind) Cap() int {
	switch k {
	case KindHeartbeat:
		return 4 << 10
	case KindState:
		return 32 << 10
	case KindLog:
		return 64 << 10
	case KindPresence:
		return 1 << 10
	}
	return 16 << 10
}

package broker

import (
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// OnPacketRead refuses what must not get further. Only ErrRejectPacket stops
// mochi here.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	switch pk.FixedHeader.Type {
	case packets.Connect:
		return cleanConnect(pk), nil
	case packets.Publish:
		s := sessionOf(cl)
		switch {
		case s == nil:
			return pk, packets.ErrRejectPacket
		case pk.FixedHeader.Qos > 1:
			return pk, h.refuse(cl, reasonQoS, packets.ErrQosNotSupported)
		case pk.Properties.TopicAliasFlag:
			return pk, h.refuse(cl, reasonAlias, packets.ErrTopicAliasInvalid)
		case pk.FixedHeader.Retain && s.grant.Role != RoleService:
			return pk, h.refuse(cl, reasonRetain, packets.ErrRetainNotSupported)
		}
	}
	return pk, nil
}

// cleanConnect makes every session a clean one that ends with its connection:
// queues for clients that are away would be replayed out of order and cost
// memory, and nothing relies on them.
func cleanConnect(pk packets.Packet) packets.Packet {
	pk.Connect.Clean = true
	pk.Properties.SessionExpiryInterval = 0
	pk.Properties.SessionExpiryIntervalFlag = false
	pk.Properties.TopicAliasMaximum = 0
	pk.Connect.WillProperties.WillDelayInterval = 0
	if len(pk.Connect.Password) == 0 {
		pk.Connect.PasswordFlag = false // mochi refuses an empty password, MQTT does not
	}
	return pk
}

// refuse closes a connection for a packet that is not allowed; with MQTT 5 the
// client is told why. The error makes mochi drop the packet.
func (h *hook) refuse(cl *mqtt.Client, why string, code packets.Code) error {
	h.b.metrics.refuse(why)
	h.b.refused.Warn().Str("client", printable(cl.ID)).Str("remote", cl.Net.Remote).Str("reason", why).Msg("packet refused")
	if cl.Properties.ProtocolVersion >= 5 {
		_ = h.b.server.DisconnectClient(cl, code)
	}
	cl.Stop(code)
	return packets.ErrRejectPacket
}

// OnACLCheck asks the table. Mochi calls it on publish, on subscribe and, with
// the receiving client, on delivery.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	s := sessionOf(cl)
	if s == nil {
		return false
	}
	if Allow(h.b.cfg.Topics, s.grant, topic, write) {
		if write || s.subscribing.Load() || !s.conn.socket.behind() {
			return true
		}
		h.b.metrics.slow.Inc()
		return false
	}
	if write && s.grant.Restricted && Allow(h.b.cfg.Topics, Grant{Role: s.grant.Role, ID: s.grant.ID}, topic, true) {
		return true // OnPublish drops it: a refusal would send the device into a loop of reconnects
	}
	why := reasonSubscribe
	if write {
		why = reasonPublish
	}
	h.b.metrics.refuse(why)
	h.b.refused.Warn().Str("client", printable(cl.ID)).Str("topic", printable(topic)).Str("reason", why).Msg("topic refused")
	return false
}

// OnSubscribe begins a subscription; see OnACLCheck.
func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if s := sessionOf(cl); s != nil {
		s.subscribing.Store(true)
	}
	return pk
}

// OnSubscribed ends it and asks for the kept device states that it matches.
func (h *hook) OnSubscribed(cl *mqtt.Client, pk packets.Packet, codes []byte) {
	s := sessionOf(cl)
	if s == nil {
		return
	}
	s.subscribing.Store(false)
	for i, sub := range pk.Filters {
		if i < len(codes) && codes[i] < packets.ErrUnspecifiedError.Code && sub.RetainHandling != 2 {
			h.b.states.subscribed(s, sub.Filter)
		}
	}
}

// OnPublish takes what devices publish out of the broker into the ingest: the
// answer CodeSuccessIgnore makes mochi acknowledge the message and route it to
// nobody. What the orchestrator publishes goes on, but for kicks and for the
// retained device states, which are kept here.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if !cl.Net.Inline {
		s := sessionOf(cl)
		if s == nil {
			return pk, packets.ErrRejectPacket
		}
		kind, _, known := h.b.cfg.Topics.Parse(pk.TopicName)
		if known && len(pk.Payload) > kind.Cap() {
			return pk, h.refuse(cl, reasonPayload, packets.ErrPacketTooLarge)
		}
		if s.grant.Role != RoleService {
			switch {
			case !known:
				return pk, packets.ErrRejectPacket // the table allows no such topic
			case s.grant.Restricted && !Allow(h.b.cfg.Topics, s.grant, pk.TopicName, true):
				h.b.metrics.refuse(reasonRestricted)
				return pk, packets.CodeSuccessIgnore
			case h.b.ingest != nil:
				h.b.ingest.Receive(pk.TopicName, pk.Payload)
				return pk, packets.CodeSuccessIgnore
			}
			return pk, nil
		}
	}
	if id, ok := h.b.cfg.Topics.ParseKick(pk.TopicName); ok {
		h.b.Kick(id)
		return pk, packets.CodeSuccessIgnore
	}
	if pk.FixedHeader.Retain && h.b.states.keep(pk.TopicName, pk.Payload) {
		pk.FixedHeader.Retain = false
	}
	return pk, nil
}

// printable bounds a string of a client's for the log.
func printable(s string) string {
	if len(s) > 128 {
		s = s[:128]
	}
	return strings.ToValidUTF8(s, "?")
}

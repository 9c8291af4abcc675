package broker

import (
	"context"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// maxKeepalive is the longest keepalive, in seconds, whose half as much again
// still fits the 16 bits that mochi computes it in.
const maxKeepalive = 43690

// authTimeout bounds one question to the Authorizer.
const authTimeout = 5 * time.Second

// hook is the only hook of the broker: mochi allows what any hook allows.
type hook struct {
	mqtt.HookBase
	b *Broker
}

// ID names the hook in mochi's log.
func (h *hook) ID() string { return "kernex" }

// Provides says which events mochi should call the hook for.
func (h *hook) Provides(event byte) bool {
	switch event {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablished, mqtt.OnACLCheck, mqtt.OnPacketRead,
		mqtt.OnSubscribe, mqtt.OnSubscribed, mqtt.OnPublish, mqtt.OnWillSent, mqtt.OnSelectSubscribers, mqtt.OnClientExpired:
		return true
	}
	return false
}

// OnConnect checks what needs no credential: the client id and the will. An
// error from OnWill would come too late: mochi sends the will all the same.
func (h *hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	if c, ok := cl.Net.Conn.(*conn); ok {
		c.connected()
	}
	if cl.State.Keepalive == 0 || cl.State.Keepalive > maxKeepalive {
		cl.State.Keepalive, cl.State.ServerKeepalive = maxKeepalive, true
	}
	username, id := string(pk.Connect.Username), pk.Connect.ClientIdentifier
	if err := checkClientID(username, id); err != nil {
		return h.refuseLogin(cl, username, reasonClientID, packets.ErrClientIdentifierNotValid, err)
	}
	if !pk.Connect.WillFlag {
		return nil
	}
	t := h.b.cfg.Topics
	if pk.Connect.WillRetain || pk.Connect.WillQos > 1 || len(pk.Connect.WillPayload) > protocol.KindPresence.Cap() ||
		pk.Connect.WillTopic != t.Device(id, protocol.KindPresence) || !Allow(t, Grant{Role: roleOf(username), ID: id}, pk.Connect.WillTopic, true) {
		err := fleet.Errorf(fleet.CodeForbidden, "will on %.128q: only the device's own presence, at most 1 KiB, not retained, QoS 0 or 1", pk.Connect.WillTopic)
		return h.refuseLogin(cl, username, reasonWill, packets.ErrNotAuthorized, err)
	}
	return nil
}

// roleOf is the role that a user name asks for.
func roleOf(username string) Role {
	switch r := Role(username); r {
	case RoleEnroll, RoleClock, RoleService, RoleMonitor:
		return r
	}
	return RoleDevice
}

// OnConnectAuthenticate decides on a login and makes it the session of its id.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	c, ok := cl.Net.Conn.(*conn)
	if !ok {
		return false
	}
	l := Login{
		Username: string(pk.Connect.Username), ClientID: pk.Connect.ClientIdentifier,
		Password: pk.Connect.Password, Remote: cl.Net.Remote,
	}
	g, code, why, err := h.grant(c, l)
	if err != nil {
		_ = h.refuseLogin(cl, l.Username, why, code, err) // the client has its CONNACK; false alone would send 5
		return false
	}
	name := l.ClientID
	if name == "" { // a monitor's: mochi has made one
		name = cl.ID
	}
	s := newSession(cl, c, g, name)
	if !h.b.enter(s) {
		_ = h.refuseLogin(cl, l.Username, reasonTakeover, packets.ErrServerUnavailable, fleet.Errorf(fleet.CodeUnavailable, "the client's old connection does not end"))
		return false
	}
	cl.ID = s.id
	if d := h.life(g); d > 0 {
		s.timer = time.AfterFunc(d, func() { cl.Stop(packets.ErrMaxConnectTime) })
	}
	c.session.Store(s)
	return true
}

// grant is what a login gets, or the CONNACK code and the reason of a refusal.
func (h *hook) grant(c *conn, l Login) (g Grant, code packets.Code, why string, err error) {
	role := roleOf(l.Username)
	if role == RoleEnroll || role == RoleClock {
		if !h.b.enrolls.allow(remoteAddr(c), time.Now()) {
			return g, packets.ErrServerUnavailable, reasonRate, fleet.Errorf(fleet.CodeRateLimited, "too many %s logins from this address", role)
		}
		return Grant{Role: role, ID: l.ClientID}, code, "", nil
	}
	ctx, cancel := context.WithTimeout(h.b.ctx, authTimeout)
	defer cancel()
	g, err = h.b.auth.Authorize(ctx, l)
	switch {
	case err != nil && (ctx.Err() != nil || fleet.ErrorCode(err) == fleet.CodeUnavailable || fleet.ErrorCode(err) == fleet.CodeInternal):
		return g, packets.ErrServerUnavailable, reasonAuthAway, err
	case err != nil:
		return g, packets.ErrBadUsernameOrPassword, reasonAuth, err
	case !g.fits(l):
		return g, packets.ErrBadUsernameOrPassword, reasonAuth, fleet.Errorf(fleet.CodeInternal, "grant of role %s, id %q for user %q", g.Role, g.ID, l.Username)
	case !g.Expires.IsZero() && !time.Now().Before(g.Expires):
		return g, packets.ErrBadUsernameOrPassword, reasonAuth, fleet.Errorf(fleet.CodeUnauthorized, "the credential has expired")
	}
	return g, code, "", nil
}

// life is how long a session may last; 0: no limit.
func (h *hook) life(g Grant) time.Duration {
	switch {
	case g.Role == RoleEnroll:
		return h.b.cfg.EnrollTimeout
	case g.Role == RoleClock:
		return h.b.cfg.ClockTimeout
	case g.Expires.IsZero():
		return 0
	}
	return max(time.Until(g.Expires), time.Nanosecond)
}

// refuseLogin answers CONNECT with a code and closes the connection.
func (h *hook) refuseLogin(cl *mqtt.Client, username, why string, code packets.Code, err error) error {
	h.b.metrics.refuse(why)
	h.b.refused.Warn().Err(err).Str("user", printable(username)).Str("remote", cl.Net.Remote).Str("reason", why).Msg("login refused")
	if _, ok := packets.V5CodesToV3[code]; !ok && cl.Properties.ProtocolVersion < 5 {
		code = packets.ErrBadUsernameOrPassword // 3.1.1 has five codes only
	}
	_ = h.b.server.SendConnack(cl, code, false, nil) // the connection is closed either way
	cl.Stop(code)
	return code
}

// OnSessionEstablished notes that the client has its CONNACK: from here on its
// will counts.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	if s := sessionOf(cl); s != nil {
		s.established.Store(true)
	}
}

// OnWillSent hands a will to the ingest: wills do not pass through OnPublish.
func (h *hook) OnWillSent(cl *mqtt.Client, _ packets.Packet) {
	s := sessionOf(cl)
	switch {
	case s == nil:
	case h.b.ingest == nil:
		s.willSent.Store(true) // mochi has published it
	default:
		h.b.deliverWill(s)
	}
}

// OnClientExpired drops the subscriptions that mochi forgets to.
func (h *hook) OnClientExpired(cl *mqtt.Client) { h.b.server.UnsubscribeClient(cl) }

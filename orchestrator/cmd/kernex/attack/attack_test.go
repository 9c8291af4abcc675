package attack

import (
	"net/http"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// target is a system with everything that an attacker could be after, or could
// have got hold of.
type target struct {
	*system
	mallory     *device // active, its key is the attacker's
	malloryLine *raw    // its connection, which reads acknowledgements
	victim      *device // has an open command and a finished one
	open, done  string  // those
	rsa, ecdsa  *device
	revoked     *device
	deleted     *device
	quarantined *device
	pending     *device
	tokens      map[string]string // API tokens by role; also revoked, expired, scoped
	claimTokens map[string]string // claim tokens: good, used, revoked, expired, serial
	bundle      fleet.Bundle
	guests      chan *device // devices that attacks log in with
}

func newTarget(t *testing.T) *target {
	t.Helper()
	x := &target{system: start(t), tokens: map[string]string{}, claimTokens: map[string]string{}}
	for _, r := range []string{"viewer", "operator", "monitor", "service"} {
		x.tokens[r] = x.apiToken(t, r, "")
	}
	x.tokens["scoped"] = x.apiToken(t, "admin", "site=elsewhere")
	x.tokens["revoked"], x.tokens["expired"] = x.apiToken(t, "monitor", ""), x.apiToken(t, "monitor", "")
	x.exec(t, `UPDATE api_tokens SET revoked_at = now() WHERE id = (SELECT id FROM api_tokens WHERE role = 'monitor' ORDER BY created_at DESC OFFSET 1 LIMIT 1)`)
	x.exec(t, `UPDATE api_tokens SET expires_at = now() - interval '1 second' WHERE id = (SELECT id FROM api_tokens WHERE role = 'monitor' ORDER BY created_at DESC LIMIT 1)`)
	for name, body := range map[string]map[string]any{
		"good": {}, "used": {}, "revoked": {}, "expired": {}, "serial": {"serials": []string{"SN-1"}},
	} {
		x.claimTokens[name] = x.claimToken(t, name, body)
	}
	x.exec(t, `UPDATE enrollment_tokens SET uses = 1 WHERE description = 'used'`)
	x.exec(t, `UPDATE enrollment_tokens SET revoked_at = now() WHERE description = 'revoked'`)
	x.exec(t, `UPDATE enrollment_tokens SET expires_at = now() - interval '1 second' WHERE description = 'expired'`)

	x.rsa, x.ecdsa = x.register(t, "rsa", nil), x.register(t, "ecdsa", nil)
	x.revoked, x.deleted, x.quarantined, x.pending = x.register(t, "", nil), x.register(t, "", nil), x.register(t, "", nil), x.register(t, "", nil)
	x.call(t, http.MethodPost, "/devices/"+x.revoked.id+"/revoke", nil).into(t, http.StatusOK, nil)
	x.call(t, http.MethodDelete, "/devices/"+x.deleted.id, nil).into(t, http.StatusNoContent, nil)
	x.call(t, http.MethodPost, "/devices/"+x.quarantined.id+"/quarantine", nil).into(t, http.StatusOK, nil)
	x.exec(t, `UPDATE devices SET status = 'pending' WHERE id = $1`, x.pending.id)

	x.invite(t, 40)
	x.mallory = x.register(t, "", nil)
	x.malloryLine = x.birth(t, x.mallory, 1, "boot-1")
	x.commands(t)
	return x
}

// commands gives the victim a finished command and one that it has not heard
// of, because it is away.
func (x *target) commands(t *testing.T) {
	t.Helper()
	x.upload(t, goodArchive(t)).into(t, http.StatusCreated, &x.bundle)
	x.victim = x.register(t, "", nil)
	c := x.birth(t, x.victim, 1, "boot-1")
	x.call(t, http.MethodPost, "/deployments", map[string]any{"bundle": x.bundle.Name, "bundle_version": x.bundle.Version, "target_devices": []string{x.victim.id}}).into(t, http.StatusCreated, nil)
	const command = `SELECT coalesce((SELECT id FROM commands WHERE device_id = $1 AND type = $2), '')`
	eventually(t, func() bool { x.done = value[string](t, x.system, command, x.victim.id, "deploy"); return x.done != "" })
	c.publish(topics.Device(x.victim.id, protocol.KindResult), protocol.Result{Command: x.done, Attempt: 1, State: fleet.TargetSucceeded}, 1)
	if a := c.ack(x.victim.id, x.done); !a.Accepted {
		t.Fatalf("the victim's own result: %+v", a)
	}
	x.leave(t, x.victim, c)
	x.call(t, http.MethodPut, "/devices/"+x.victim.id+"/config", map[string]any{"log_level": "debug"}).into(t, http.StatusOK, nil)
	x.open = value[string](t, x.system, command, x.victim.id, "configure")
}

// leave ends a device's first session.
func (s *system) leave(t *testing.T, d *device, c *raw) {
	t.Helper()
	c.t = t
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	c.publish(topics.Device(d.id, protocol.KindPresence), protocol.Presence{Session: 1}, 1)
	eventually(t, func() bool {
		return !value[bool](t, s, `SELECT online FROM device_status WHERE device_id = $1`, d.id)
	})
	_ = c.Close()
}

func (s *system) apiToken(t *testing.T, role, selector string) string {
	t.Helper()
	var made struct{ Token string }
	s.call(t, http.MethodPost, "/tokens", map[string]any{"name": role, "role": role, "selector": selector}).into(t, http.StatusCreated, &made)
	return made.Token
}

func (s *system) claimToken(t *testing.T, name string, body map[string]any) string {
	t.Helper()
	var made struct{ Token string }
	body["description"] = name
	key := ""
	if name == "good" {
		key = "attack"
	}
	s.call(t, http.MethodPost, "/enrollment-tokens", body, "Idempotency-Key", key).into(t, http.StatusCreated, &made)
	return made.Token
}

// attack is one case. It fails its test unless it is refused for the reason
// that it expects.
type attack struct {
	name    string
	run     func(t *testing.T)
	counted []string // the broker's reasons of its refusals, as its counter has them
}

// TestAttacksAreRefusedAndChangeNothing runs every attack against one live
// system. After each group every row and every object is as it was, and an
// honest device is served.
func TestAttacksAreRefusedAndChangeNothing(t *testing.T) {
	t.Parallel()
	x := newTarget(t)
	total := 0
	for _, group := range []struct {
		name    string
		attacks func(t *testing.T) []attack
		inOrder bool // the attacks share a connection
	}{
		{"login", x.logins, false},
		{"packet", x.packets, false},
		{"subscribe", x.subscriptions, false},
		{"publish", x.publishes, false},
		{"message", x.messages, true},
		{"enrol", x.enrolments, false},
		{"http", x.requests, false},
		{"bundle", x.uploads, false},
		{"store", x.storeRequests, false},
		{"internal", x.internals, false},
		{"trust", x.trust, false},
	} {
		names := map[string]bool{}
		t.Run(group.name, func(t *testing.T) {
			attacks := group.attacks(t)
			total += len(attacks)
			before, refused, want := x.settled(t), x.refusals(t), map[string]int{}
			for _, a := range attacks {
				for _, reason := range a.counted {
					want[reason]++
				}
			}
			t.Run("each", func(t *testing.T) {
				for _, a := range attacks {
					if names[a.name] {
						t.Errorf("two attacks are called %q", a.name)
					}
					names[a.name] = true
					t.Run(a.name, func(t *testing.T) {
						if !group.inOrder {
							t.Parallel()
						}
						a.run(t)
					})
				}
			})
			x.unchanged(t, before)
			for reason, n := range x.refusals(t) {
				if n -= refused[reason]; n != want[reason] && len(want) > 0 {
					t.Errorf("%d refusals are counted as %s, want %d", n, reason, want[reason])
				}
			}
			x.honest(t)
		})
	}
	t.Logf("%d attacks", total)
	if total < 100 {
		t.Errorf("only %d attacks", total)
	}
}

// refusals is the broker's count of what it refused, by reason.
func (x *target) refusals(t *testing.T) map[string]int {
	t.Helper()
	count := map[string]int{}
	for _, reason := range []string{
		"client_id", "will", "credential", "rate", "no_connect", "not_connect", "malformed", "packet_too_large", "payload_too_large", "qos2", "topic_alias", "retain", "publish", "subscribe", "panic",
	} {
		count[reason] = int(x.metric(t, "kernex_broker_refused_total", "reason="+reason))
	}
	return count
}

// honest checks that a device with nothing to hide is served: its report for a
// command that does not exist is answered.
func (x *target) honest(t *testing.T) {
	t.Helper()
	c := x.login(t, x.hello(t, x.ecdsa))
	if code := c.subscribe(topics.Device(x.ecdsa.id, protocol.KindAck)); code >= 0x80 {
		t.Fatalf("SUBACK %#x", code)
	}
	c.publish(topics.Device(x.ecdsa.id, protocol.KindResult), protocol.Result{Command: "cmd-honest", Attempt: 1, State: fleet.TargetFailed}, 1)
	c.ack(x.ecdsa.id, "cmd-honest")
	_ = c.Close()
}

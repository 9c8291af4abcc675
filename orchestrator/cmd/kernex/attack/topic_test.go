package attack

import (
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	testkit.Eventually(t, 20*time.Second, condition)
}

// lines are logins that get in, by who they are.
func (x *target) line(t *testing.T, who string) (c *raw, id string) {
	t.Helper()
	switch who {
	case "device":
		d := x.guest(t)
		return x.login(t, x.hello(t, d)), d.id
	case "quarantined":
		return x.login(t, x.hello(t, x.quarantined)), x.quarantined.id
	case "pending":
		return x.login(t, x.hello(t, x.pending)), x.pending.id
	case "enroll":
		return x.login(t, hello{id: nonce, username: "enroll"}), nonce
	case "clock":
		return x.login(t, hello{id: "clock-abc", username: "clock"}), "abc"
	}
	return x.login(t, hello{id: "attacker-" + rand.Text(), username: who, password: x.tokens[who]}), who
}

// subscriptions are filters that SUBACK refuses. OWN stands for the client's own
// id.
func (x *target) subscriptions(*testing.T) []attack {
	victim, root := x.victim.id, topics.Root
	var list []attack
	for who, filters := range map[string][]string{
		"device": {
			topics.Device(victim, protocol.KindCommand), topics.Device(victim, protocol.KindAck), topics.Device("+", protocol.KindCommand),
			root + "/devices/OWN/+", root + "/devices/OWN/#", root + "/devices/OWN/state", root + "/#", "#", "+/#", "/#", "$SYS/#",
			"$share/g/#", "$ShArE/g/#", "$SHARE/g/" + topics.Device("OWN", protocol.KindCommand), "$share/kernex/" + root + "/devices/+/state",
			topics.FleetFilter(), topics.FleetEvents(), topics.Time(), root + "/control/#", topics.EnrollReply(nonce), strings.ToUpper(root) + "/devices/OWN/command",
		},
		"quarantined": {topics.Device("OWN", protocol.KindCommand), topics.Device(victim, protocol.KindCommand)},
		"pending":     {topics.Device("OWN", protocol.KindCommand)},
		"enroll":      {topics.EnrollReply(strings.Repeat("0", 32)), root + "/enroll/+/reply", root + "/enroll/#", topics.EnrollRequest("OWN"), topics.Time(), topics.Device(victim, protocol.KindCommand)},
		"clock":       {root + "/+", root + "/#", topics.EnrollReply(nonce), topics.FleetSummary()},
		"monitor":     {"#", root + "/#", root + "/+/summary", topics.Device(victim, protocol.KindHeartbeat), topics.Device(victim, protocol.KindCommand), "$share/g/" + topics.FleetFilter(), root + "/fleetx/#", root + "/control/#"},
		"service":     {"#", "$SYS/#", "other/#"},
	} {
		for _, filter := range filters {
			list = append(list, attack{name: who + " subscribes " + strings.ReplaceAll(filter, "/", ":"), run: func(t *testing.T) {
				c, id := x.line(t, who)
				if code := c.subscribe(strings.ReplaceAll(filter, "OWN", id)); code < 0x80 {
					t.Errorf("SUBACK %#x", code)
				}
				c.ping()
				_ = c.Close()
			}, counted: []string{"subscribe"}})
		}
	}
	return inTurn(list, "enroll", "clock", "quarantined", "pending")
}

// inTurn makes the attacks of logins that have one client id only wait for each
// other: the second would throw the first out.
func inTurn(list []attack, whos ...string) []attack {
	for _, who := range whos {
		turn := make(chan struct{}, 1)
		for i, a := range list {
			if !strings.HasPrefix(a.name, who+" ") {
				continue
			}
			list[i].run = func(t *testing.T) {
				turn <- struct{}{}
				defer func() { <-turn }()
				a.run(t)
			}
		}
	}
	return list
}

// publishes are messages to topics that are not the client's. At QoS 0 they are
// dropped and counted, at QoS 1 the connection ends, because MQTT 3.1.1 has no
// other way to say no.
func (x *target) publishes(*testing.T) []attack {
	victim := x.victim.id
	var list []attack
	for who, to := range map[string][]string{
		"device": {
			topics.Device(victim, protocol.KindHeartbeat), topics.Device(victim, protocol.KindState), topics.Device(victim, protocol.KindResult), topics.Device(victim, protocol.KindLog),
			topics.Device(victim, protocol.KindRequest), topics.Device(victim, protocol.KindPresence), topics.Device(victim, protocol.KindCommand), topics.Device(victim, protocol.KindAck),
			topics.Device("OWN", protocol.KindCommand), topics.Device("OWN", protocol.KindAck), topics.FleetSummary(), topics.FleetEvents(), topics.FleetDevice(victim),
			topics.EnrollRequest(nonce), topics.EnrollReply(nonce), topics.Kick(victim), topics.Time(), "elsewhere", "$share/g/" + topics.Device("OWN", protocol.KindState),
			strings.ToUpper(topics.Root) + "/devices/OWN/state", topics.Root + "//devices/OWN/state", topics.Root + "/devices/OWN/state/",
		},
		"monitor": {topics.Device(victim, protocol.KindCommand), topics.FleetSummary(), topics.Kick(victim)},
		"enroll":  {topics.EnrollRequest(strings.Repeat("0", 32)), topics.EnrollReply("OWN"), topics.Device(victim, protocol.KindResult)},
		"clock":   {topics.Time(), topics.EnrollRequest(nonce)},
		"service": {topics.Device(victim, protocol.KindResult), topics.EnrollRequest(nonce), "elsewhere"},
	} {
		for _, topic := range to {
			list = append(list, attack{name: who + " publishes on " + strings.ReplaceAll(topic, "/", ":"), run: func(t *testing.T) {
				c, id := x.line(t, who)
				topic := strings.ReplaceAll(topic, "OWN", id)
				c.send(publish(topic, `{"online":false,"session":9}`, 0))
				c.ping()
				c.send(publish(topic, `{"online":false,"session":9}`, 1))
				c.closed()
			}, counted: []string{"publish", "publish"}})
		}
	}
	// Mochi ignores these before it asks anybody.
	list = append(list, attack{name: "device publishes on $SYS", run: func(t *testing.T) {
		c, _ := x.line(t, "device")
		c.send(publish("$SYS/broker/version", "evil", 0))
		c.ping()
		_ = c.Close()
	}})
	return inTurn(list, "enroll", "clock")
}

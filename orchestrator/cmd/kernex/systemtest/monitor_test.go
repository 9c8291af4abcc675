package systemtest

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/schema"
)

// TestMosquittoSubSeesTheFleetAndItsTokenCanPublishNothing uses the tools that
// people use: what mosquitto_sub prints fits the schemas, and what mosquitto_pub
// sends with the same token reaches nobody.
func TestMosquittoSubSeesTheFleetAndItsTokenCanPublishNothing(t *testing.T) {
	t.Parallel()
	s := startUp(t, dataDir(t), nil)
	tok, err := s.api.CreateToken(t.Context(), client.NewToken{Name: "dashboard", Role: fleet.RoleMonitor})
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(s.addr.MQTT)
	if err != nil {
		t.Fatal(err)
	}
	login := []string{"-h", host, "-p", port, "-u", "monitor", "-P", tok.Token}
	sub := start(t, "mosquitto_sub", exec.Command("mosquitto_sub", append(login, "-t", "kernex/v1/fleet/#", "-F", "%t %p")...))
	a := s.agents(1)[0]
	topics := protocol.NewTopics("")
	want := map[string]string{
		topics.FleetDevice(a.id()): "fleet-device", topics.FleetSummary(): "fleet-summary", topics.FleetEvents(): "fleet-event",
	}
	testkit.Eventually(t, patience, func() bool {
		seen := map[string]bool{}
		for _, line := range lines(sub) {
			topic, _, _ := strings.Cut(line, " ")
			seen[topic] = true
		}
		for topic := range want {
			if !seen[topic] {
				return false
			}
		}
		return true
	})
	for _, line := range lines(sub) {
		topic, payload, _ := strings.Cut(line, " ")
		name, known := want[topic]
		if !known {
			continue
		}
		if err := schema.ValidateMessage(name, []byte(payload)); err != nil {
			t.Errorf("%s: %s: %v", topic, payload, err)
		}
	}

	const forged = `{"forged":true}`
	for _, topic := range []string{topics.FleetSummary(), topics.FleetEvents(), topics.Device(a.id(), protocol.KindCommand), topics.Device(a.id(), protocol.KindPresence), topics.Kick(a.id())} {
		for _, qos := range []string{"0", "1"} {
			// Refused or dropped, as the protocol version and QoS allow; what
			// counts is that nothing comes of it.
			_ = exec.CommandContext(t.Context(), "mosquitto_pub", append(login, "-t", topic, "-q", qos, "-m", forged)...).Run()
		}
	}
	// What is published next comes after everything forged.
	if _, err := s.api.PatchDevice(t.Context(), a.id(), fleet.DevicePatch{Labels: &fleet.Labels{"fleet": "test", "after": "forgery"}}); err != nil {
		t.Fatal(err)
	}
	before := len(lines(sub))
	if _, err := s.api.Quarantine(t.Context(), a.id()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() bool { return len(lines(sub)) > before })
	if strings.Contains(sub.output(), "forged") {
		t.Error("a monitor's message was delivered")
	}
	d, err := s.api.Device(context.Background(), a.id())
	if err != nil || d.Status != "quarantined" {
		t.Errorf("device is %s, %v", d.Status, err)
	}
}

// lines returns the whole lines that a program has printed.
func lines(p *process) []string {
	all := strings.Split(p.output(), "\n")
	return all[:len(all)-1]
}

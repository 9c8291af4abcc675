package agent_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// trialed starts a device behind a proxy that gives configurations a short
// trial.
func trialed(t *testing.T, trial time.Duration) (*orchestrator, *device, *testkit.Proxy, agent.Config) {
	t.Helper()
	o := newOrchestrator(t)
	p := testkit.NewProxy(t, strings.TrimPrefix(o.broker.URL, "tcp://"))
	cfg := config(o, t.TempDir())
	cfg.Broker, cfg.RevertAfter = "tcp://"+p.Addr(), trial
	d := start(o, cfg)
	o.await("the first state report", func() bool { return len(o.states) > 0 })
	return o, d, p, cfg
}

func (o *orchestrator) configure(device string, version int64, heartbeat int) {
	o.t.Helper()
	c := o.command(device, protocol.CommandConfigure)
	c.Configure = &protocol.Configure{Config: fleet.DefaultConfig()}
	c.Configure.Config.Version, c.Configure.Config.HeartbeatIntervalS = version, heartbeat
	o.send(c, o.key)
	if r := o.final(c.ID); r.State != fleet.TargetSucceeded {
		o.t.Fatalf("%+v", r)
	}
}

// kept is what a device's cache says of its configuration.
func (d *device) kept(t *testing.T) (c struct {
	Config   fleet.Config
	Before   *fleet.Config
	Reported int64
	Outcome  string
	Error    string
}) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.dir, "device_config.json"))
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAConfigurationThatCutsTheDeviceOffIsUndoneAlsoAfterARestart(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		o, d, p, cfg := trialed(t, 3*time.Second)
		o.configure(d.DeviceID(), 2, 7)
		p.Refuse() // the configuration does it
		if c := d.kept(t); c.Config.Version != 2 || c.Before == nil || c.Before.Version != 1 {
			t.Fatalf("on trial: %+v", c)
		}
		if restart {
			d.stop()
			d = start(o, cfg)
		}
		wait(t, "the configuration before", func() bool { return d.kept(t).Outcome == "reverted" }, func() string { return "" })
		if c := d.kept(t); c.Config.Version != 1 || c.Config.HeartbeatIntervalS != 60 || c.Before != nil || c.Reported != 2 || !strings.Contains(c.Error, "no connection") {
			t.Errorf("after it: %+v", c)
		}
		o.edit(func() { o.states = nil })
		p.Restore()
		o.await("the outcome in the state report", func() bool {
			return len(o.states) > 0 && o.states[len(o.states)-1].ConfigVersion == 2 && o.states[len(o.states)-1].ConfigOutcome == "reverted"
		})
		o.configure(d.DeviceID(), 3, 8)
		if c := d.kept(t); c.Config.Version != 3 || c.Outcome != "applied" {
			t.Errorf("the next: %+v", c)
		}
	}
}

func TestAConfigurationThatTheDeviceHasConnectedWithStaysWhateverTheNetworkDoes(t *testing.T) {
	t.Parallel()
	const trial = 2 * time.Second // longer than the first wait before a new connection
	for _, reconnect := range []bool{false, true} {
		o, d, p, _ := trialed(t, trial)
		if !reconnect { // it holds for the whole time
			o.configure(d.DeviceID(), 2, 7)
		} else {
			o.edit(func() { o.states = nil })
			o.configure(d.DeviceID(), 2, 7)
			p.Cut()
		}
		wait(t, "the end of the trial", func() bool { return d.kept(t).Before == nil }, func() string { return "" })
		p.Refuse()
		timer := time.NewTimer(2 * trial)
		<-timer.C
		if c := d.kept(t); c.Config.Version != 2 || c.Outcome != "applied" {
			t.Errorf("after an outage: %+v", c)
		}
	}
}

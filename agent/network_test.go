package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestAReleaseThatNeedsTheNetworkGoesBackWhenTheBrokerIsSilent(t *testing.T) {
	t.Parallel()
	o := newOrchestrator(t)
	proxy := testkit.NewProxy(t, strings.TrimPrefix(o.broker.URL, "tcp://"))
	cfg := config(o, t.TempDir())
	cfg.Broker = "tcp://" + proxy.Addr()
	d := start(o, cfg)
	o.await("the first state report", func() bool { return len(o.states) > 0 })
	needs := strings.Replace(manifest, `"window_s":10`, `"window_s":3,"needs_network":true`, 1)
	old := o.pack("1.0.0", needs, good())
	if r := o.run(d.DeviceID(), old); r.State != fleet.TargetSucceeded {
		t.Fatalf("with the broker: %+v %+v", r, r.Error)
	}
	c := o.deploy(d.DeviceID(), o.pack("2.0.0", needs, with(good(), "deploy.sh", "#!/bin/sh\n"+gate)))
	o.send(c, o.key)
	d.arm(o, "beat", c)()
	proxy.Blackhole() // half open: the connection seems to be there
	if err := os.WriteFile(filepath.Join(d.dir, "state", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The health check holds and the window passes before the device goes back.
	wait(t, "the new release", func() bool { return d.current(t) == c.Deploy.Bundle.Release }, func() string { return d.current(t) })
	wait(t, "the old release", func() bool { return d.current(t) == old.Release }, func() string { return d.current(t) })
	proxy.Cut()
	proxy.Restore()
	r := o.final(c.ID)
	if r.State != fleet.TargetRolledBack || r.Error.Code != fleet.CodeHealth || !strings.HasPrefix(r.Error.Message, "back from 2.0.0 to 1.0.0: ") || !strings.Contains(r.Error.Message, "broker was not reached") {
		t.Fatalf("%+v %+v", r, r.Error)
	}
}

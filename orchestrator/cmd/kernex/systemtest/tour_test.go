package systemtest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// tourOf is the README's tour on a fleet that is up already: its devices are
// labelled fleet=test, and c reaches the network of each. The CLI talks to one
// way into the fleet after the other, as behind a load balancer.
type tourOf struct {
	t      *testing.T
	ways   []*system
	agents []*agent
	c      func(*agent) *http.Client
	calls  int
}

// kernex runs the CLI at the next way in.
func (o *tourOf) kernex(args ...string) (out string, code int) {
	o.t.Helper()
	o.calls++
	return o.ways[o.calls%len(o.ways)].kernex(args...)
}

func (o *tourOf) must(args ...string) string {
	o.t.Helper()
	out, code := o.kernex(args...)
	if code != 0 {
		o.t.Fatalf("kernex %v: exit %d: %s", args, code, out)
	}
	return out
}

func (o *tourOf) deploy(version string) (out string, code int) {
	o.t.Helper()
	return o.kernex("deploy", "--bundle", "edge-inference", "--version", version, "--selector", "fleet=test")
}

// run takes the tour and checks after each step what the README says is so.
func (o *tourOf) run() {
	t := o.t
	t.Helper()
	for _, v := range []string{"1.0.0", "1.1.0", "2.0.0"} {
		o.must("bundle", "push", filepath.Join(bin(t), v))
	}
	for _, v := range []string{"1.0.0", "1.1.0"} {
		if out, code := o.deploy(v); code != 0 {
			t.Fatalf("deploy %s: exit %d: %s", v, code, out)
		}
		o.all(v)
	}
	out, code := o.deploy("2.0.0")
	if code != 1 || strings.Count(out, "self-test failed") < len(o.agents) {
		t.Errorf("deploy 2.0.0: exit %d, want 1 and the health check's own words: %s", code, out)
	}
	o.all("1.1.0")
	failed, err := o.ways[0].api.Deployments(t.Context(), "failed", 10)
	if err != nil || len(failed.Items) != 1 || !strings.Contains(failed.Items[0].Reason, "self-test failed") {
		t.Fatalf("failed deployments %+v, %v, want one with the health check's words", failed.Items, err)
	}
	if got, err := o.ways[0].api.Targets(t.Context(), failed.Items[0].ID, fleet.TargetRolledBack, 0); err != nil || len(got.Items) != len(o.agents) {
		t.Errorf("targets rolled back: %+v, %v, want all", got.Items, err)
	}

	o.must("rollback", "--version", "1.0.0", "--selector", "fleet=test")
	o.all("1.0.0")
	if out, code := o.kernex("rollback", "--version", "2.0.0", "--selector", "fleet=test"); code != 1 || !strings.Contains(out, "2.0.0 was never deployed successfully") {
		t.Errorf("rollback to 2.0.0: exit %d: %s", code, out)
	}

	id := o.agents[0].id()
	o.must("device", "config", "set", id, "--heartbeat-interval", "2")
	obeys(t, o.ways[0].api, id)
	if out := o.must("device", "history", id); !strings.Contains(out, "rolled_back") {
		t.Errorf("the history does not tell of the return: %s", out)
	}
}

// all waits until every device reports the version and serves it.
func (o *tourOf) all(version string) {
	o.t.Helper()
	runs(o.t, o.ways[0].api, version, len(o.agents))
	for _, a := range o.agents {
		servesVia(o.t, o.c(a), version, a.dir)
	}
}

// runs waits until n devices of the fleet are online and report the version.
func runs(t *testing.T, api *client.Client, version string, n int) {
	t.Helper()
	testkit.Eventually(t, patience, func() error {
		got, err := api.Devices(context.Background(), client.DeviceFilter{Selector: "fleet=test", Status: "online"}, 1000)
		if err != nil {
			return err
		}
		have := 0
		for _, d := range got.Items {
			if d.BundleVersion == version {
				have++
			}
		}
		if have != n {
			return fmt.Errorf("%d of %d devices online run %q", have, n, version)
		}
		return nil
	})
}

// obeys checks, after the tour, that a device applied its second configuration
// with a heartbeat interval of a few seconds and reports it, and its bundle history,
// newest first.
func obeys(t *testing.T, api *client.Client, id string) {
	t.Helper()
	ctx := t.Context()
	testkit.Eventually(t, patience, func() error {
		d, err := api.Device(ctx, id)
		if err == nil && (d.ConfigReported != d.ConfigVersion || d.ConfigOutcome != "applied" || d.ConfigVersion != 2) {
			err = fmt.Errorf("config %d, reported %d, %s", d.ConfigVersion, d.ConfigReported, d.ConfigOutcome)
		}
		return err
	})
	// At 60 s, the default, two more heartbeats would take longer than we wait.
	seen := map[int64]bool{}
	testkit.Eventually(t, patience, func() error {
		d, err := api.Device(ctx, id)
		if err == nil && d.LastHeartbeat != nil {
			seen[d.LastHeartbeat.UnixNano()] = true
		}
		if len(seen) < 4 {
			return errors.Join(fmt.Errorf("%d heartbeats", len(seen)), err)
		}
		return nil
	})
	h, err := api.History(ctx, id, 10)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range h.Items {
		got = append(got, e.Kind+" "+e.Version+" "+e.Status)
	}
	want := []string{"rollback 1.0.0 success", "deploy 2.0.0 rolled_back", "deploy 1.1.0 success", "deploy 1.0.0 success"}
	if !slices.Equal(got, want) {
		t.Errorf("history %q, want %q", got, want)
	}
}

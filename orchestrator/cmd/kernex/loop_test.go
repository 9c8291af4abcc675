package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// waitLimit is how long a test waits for what should take about a second.
const waitLimit = 60 * time.Second

func TestTheWholeLoopFromTheCommandLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one := w.addDevice(fleet.Labels{"site": "lab"}, good)
	two := w.addDevice(fleet.Labels{"site": "lab", "ring": "canary"}, func(c protocol.Command) []protocol.Result {
		if c.Deploy != nil && c.Deploy.Bundle.Version == "2.0.0" {
			return bad(c)
		}
		return good(c)
	})
	first := w.bundleDir("1.0.0")
	out, _ := w.kernex(exitDone, "bundle", "push", first)
	contains(t, out, "pushed vision 1.0.0", "id bun-")
	w.setVersion(w.bundleDir("2.0.0"), "2.0.0")
	second := w.bundleDir("2.0.0")
	w.kernex(exitDone, "bundle", "push", second)
	out, _ = w.kernex(exitDone, "bundle", "list")
	contains(t, out, "NAME", "vision  2.0.0", "vision  1.0.0")

	out, _ = w.kernex(exitDone, "deploy", "--bundle", "vision", "--version", "1.0.0", "--selector", "site=lab", "--description", "first")
	contains(t, out, "vision 1.0.0 to 2 devices", "succeeded", "2 succeeded")

	out, errs := w.kernex(exitFailed, "deploy", "--bundle", "vision", "--version", "2.0.0", "--device", one, "--device", two)
	contains(t, out, two+"  rolled_back  health check exited 3: model missing (health)", "| line one", "| model.bin:  [31mno such file")
	contains(t, errs, "kernex: deployment dep-", "failed", "1 succeeded, 1 rolled_back")
	if strings.Contains(out+errs, "\x1b") {
		t.Errorf("a device's escape sequence reached the terminal: %q", out)
	}

	out, _ = w.kernex(exitDone, "rollback", "--version", "1.0.0", "--device", one)
	contains(t, out, "rollback to vision 1.0.0 to 1 device", "1 succeeded")
	_, errs = w.kernex(exitFailed, "rollback", "--version", "2.0.0", "--device", two)
	contains(t, errs, "2.0.0", two)
	if strings.Count(errs, "\n") != 1 {
		t.Errorf("an error is one line: %q", errs)
	}

	out, _ = w.kernex(exitDone, "device", "history", two)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], "2.0.0") || !strings.Contains(lines[1], "rolled_back") || !strings.Contains(lines[2], "success") {
		t.Errorf("history:\n%s", out)
	}
	list := kernexJSON[fleet.List[fleet.Deployment]](w, exitDone, "deployment", "list")
	if list.Total != 3 || list.Items[0].Kind != "rollback" {
		t.Errorf("deployments: %+v", list)
	}
	failed := list.Items[1]
	out, _ = w.kernex(exitDone, "deployment", "targets", failed.ID, "--state", "rolled_back")
	contains(t, out, two, "model missing")
	if strings.Contains(out, one) {
		t.Errorf("--state rolled_back shows the other device:\n%s", out)
	}
	d := kernexJSON[fleet.Deployment](w, exitFailed, "deployment", "get", failed.ID, "--watch")
	if d.ID != failed.ID || d.Status != fleet.DeploymentFailed {
		t.Errorf("%+v", d)
	}
	out, _ = w.kernex(exitDone, "audit", "list", "--action", "deployment.create")
	contains(t, out, failed.ID, "WHO")
}

func TestTheDeviceListInJSONIsTheAPIsAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.addDevice(fleet.Labels{"site": "lab"}, nil)
	w.addDevice(nil, nil)
	out, _ := w.kernex(exitDone, "device", "list", "--selector", "site=lab", "-o", "json")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/api/v1/devices?selector=site%3Dlab", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got, want any
	if err := json.NewDecoder(resp.Body).Decode(&want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(want)
	if string(a) != string(b) || !strings.Contains(out, id) {
		t.Errorf("got  %s\nwant %s", a, b)
	}
}

func TestDevicesAreLabelledConfiguredAndRetiredFromTheCommandLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.addDevice(fleet.Labels{"site": "lab", "old": "x"}, func(c protocol.Command) []protocol.Result {
		return []protocol.Result{{State: fleet.TargetSucceeded}}
	})
	out, _ := w.kernex(exitDone, "device", "label", id, "ring=canary", "old-")
	contains(t, out, "ring=canary,site=lab")
	out, _ = w.kernex(exitDone, "device", "list")
	contains(t, out, "ID ", "STATUS", id, "online", "ring=canary,site=lab", "never")

	out, _ = w.kernex(exitDone, "device", "config", "set", id, "--heartbeat-interval", "15", "--set", "threshold=0.7", "--set", "name=a,b")
	contains(t, out, "version 2")
	w.kernex(exitDone, "device", "config", "set", id, "--set", "threshold=0.8", "--unset", "name")
	cfg := kernexJSON[fleet.DeviceConfig](w, exitDone, "device", "config", "get", id)
	if cfg.Version != 3 || cfg.HeartbeatIntervalS != 15 || len(cfg.Metadata) != 1 || cfg.Metadata["threshold"] != 0.8 {
		t.Errorf("%+v", cfg)
	}
	w.kernex(exitDone, "device", "config", "set", id, "--unset", "threshold")
	if cfg = kernexJSON[fleet.DeviceConfig](w, exitDone, "device", "config", "get", id); len(cfg.Metadata) != 0 || cfg.Version != 4 {
		t.Errorf("the last key stays: %+v", cfg)
	}
	out, _ = w.kernex(exitDone, "device", "config", "set", "--selector", "ring=canary", "--log-level", "debug")
	contains(t, out, "1 of 1 devices")
	w.eventually("the device to apply its configuration", func() bool {
		c, err := w.api().Config(t.Context(), id)
		return err == nil && c.ReportedVersion == 5
	})
	out, _ = w.kernex(exitDone, "device", "config", "get", id)
	contains(t, out, "version 5, applied", "15 s", "debug")
	out, _ = w.kernex(exitDone, "device", "config", "history", id)
	contains(t, out, "VERSION", `{"name":"a,b","threshold":0.7}`, "debug")

	out, _ = w.kernex(exitDone, "device", "quarantine", id)
	contains(t, out, "quarantined")
	w.kernex(exitDone, "device", "release", id)
	out, errs := w.kernex(exitFailed, "device", "revoke", "nosuchdevice", id)
	contains(t, out, id+": revoked")
	contains(t, errs, "nosuchdevice")
	out, _ = w.kernex(exitDone, "device", "get", id)
	contains(t, out, "revoked", "fingerprint:")
	w.kernex(exitDone, "device", "delete", id)
	_, errs = w.kernex(exitFailed, "device", "get", id)
	contains(t, errs, "kernex: ", id)
}

func TestTokensAreMadeShownOnceAndRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out, errs := w.kernex(exitDone, "token", "create", "--name", "ci", "--role", "viewer", "--expires", "30d")
	secret := strings.TrimSpace(out)
	if !strings.HasPrefix(secret, "kx_") || strings.ContainsAny(secret, " \n") {
		t.Fatalf("stdout holds %q", out)
	}
	contains(t, errs, "shown this once")
	out, _ = w.kernex(exitDone, "--token", secret, "device", "list", "-o", "json")
	contains(t, out, `"items": []`)
	_, errs = w.kernex(exitFailed, "--token", secret, "token", "list")
	contains(t, errs, "admin", "viewer")
	tokens := kernexJSON[fleet.List[fleet.APIToken]](w, exitDone, "token", "list")
	for _, k := range tokens.Items {
		if k.Name == "ci" {
			w.kernex(exitDone, "token", "revoke", k.ID)
		}
	}
	_, errs = w.kernex(exitFailed, "--token", secret, "device", "list")
	contains(t, errs, "KERNEX_TOKEN")
	out, _ = w.kernex(exitDone, "token", "list")
	contains(t, out, "ci", "revoked")

	out, _ = w.kernex(exitDone, "enroll-token", "create", "--label", "site=lab", "--label", "ring=canary", "--max-uses", "5", "--no-auto-approve")
	if strings.TrimSpace(out) == "" || strings.Count(out, "\n") != 1 {
		t.Errorf("stdout holds %q", out)
	}
	claims := kernexJSON[fleet.List[fleet.EnrollmentToken]](w, exitDone, "enroll-token", "list")
	if len(claims.Items) != 1 || claims.Items[0].MaxUses != 5 || claims.Items[0].AutoApprove || claims.Items[0].Labels.String() != "ring=canary,site=lab" {
		t.Errorf("%+v", claims)
	}
	w.kernex(exitDone, "enroll-token", "revoke", claims.Items[0].ID)
	out, _ = w.kernex(exitDone, "enroll-token", "list")
	contains(t, out, "0 of 5 uses", "by an operator", "revoked")
}

func TestABundleIsBuiltReproduciblyCheckedAndDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := w.bundleDir("1.0.0")
	_, errs := w.kernex(exitFailed, "bundle", "init", dir)
	contains(t, errs, "already there")
	a, b := filepath.Join(t.TempDir(), "a.tar.gz"), filepath.Join(t.TempDir(), "b.tar.gz")
	w.kernex(exitDone, "bundle", "build", dir, "-f", a)
	w.kernex(exitDone, "bundle", "build", dir, "--file", b)
	one, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := os.ReadFile(b); err != nil || string(one) != string(two) {
		t.Errorf("two builds of one directory differ, %v", err)
	}
	_, errs = w.kernex(exitFailed, "bundle", "build", dir, "-f", a)
	contains(t, errs, "--force")
	pushed := kernexJSON[fleet.Bundle](w, exitDone, "bundle", "push", a)
	again := kernexJSON[fleet.Bundle](w, exitDone, "bundle", "push", dir)
	if pushed.ID == "" || pushed.ID != again.ID {
		t.Errorf("the same release has two ids: %q, %q", pushed.ID, again.ID)
	}
	out, _ := w.kernex(exitDone, "bundle", "get", "vision@1.0.0")
	contains(t, out, pushed.ID, pushed.Release, "signed by:")
	w.kernex(exitDone, "bundle", "verify", pushed.ID)
	_, errs = w.kernex(exitFailed, "bundle", "verify", "vision@1.0.0", "--checksum", strings.Repeat("0", 64))
	contains(t, errs, "does not have the checksum")
	_, errs = w.kernex(exitFailed, "bundle", "get", "vision@9.9.9")
	contains(t, errs, "no bundle vision of version 9.9.9; there is: 1.0.0")
	if err := os.WriteFile(a, one[:len(one)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs = w.kernex(exitFailed, "bundle", "push", a)
	contains(t, errs, a)
	w.kernex(exitDone, "bundle", "delete", "vision@1.0.0")
	_, errs = w.kernex(exitDone, "bundle", "list")
	contains(t, errs, "no bundles")
}

func TestStoppingToWatchLeavesTheDeploymentRunning(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.addDevice(nil, func(c protocol.Command) []protocol.Result {
		if c.Cancel == nil {
			return nil // it has the command and says nothing
		}
		return []protocol.Result{{State: fleet.TargetSucceeded}}
	})
	w.kernex(exitDone, "bundle", "push", w.bundleDir("1.0.0"))

	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var out, errs output
	code := make(chan int, 1)
	go func() {
		code <- w.start(ctx, &out, &errs, "deploy", "--bundle", "vision", "--version", "1.0.0", "--device", id)
	}()
	w.eventually("the offer", func() bool { return strings.Contains(out.String(), "1 offered") })
	interrupt()
	if c := <-code; c != exitFailed {
		t.Errorf("exit code %d", c)
	}
	d := kernexJSON[fleet.List[fleet.Deployment]](w, exitDone, "deployment", "list").Items[0]
	contains(t, errs.String(), "stopped watching", "kernex deployment get "+d.ID+" --watch")
	if d.Status.Final() {
		t.Errorf("the deployment is %s", d.Status)
	}
	_, late := w.kernex(exitFailed, "deployment", "get", d.ID, "--watch", "--timeout", "10ms")
	contains(t, late, "no end after 10ms", "goes on")
	o, _ := w.kernex(exitDone, "deployment", "cancel", d.ID)
	contains(t, o, d.ID)
	_, e := w.kernex(exitFailed, "deployment", "get", d.ID, "--watch")
	contains(t, e, "cancelled")

	retried := kernexJSON[fleet.Deployment](w, exitDone, "deployment", "retry", d.ID, "--no-wait")
	if retried.ID == d.ID || retried.Total != 1 {
		t.Errorf("%+v", retried)
	}
}

func TestEventsAreWatchedLive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var lines, plain, errs output
	codes := make(chan int, 2)
	go func() { codes <- w.start(ctx, &lines, &errs, "watch", "-o", "json", "--after", "0") }()
	go func() { codes <- w.start(ctx, &plain, &errs, "watch", "--after", "0") }()
	id := w.addDevice(nil, nil)
	w.eventually("both watchers to see the device", func() bool {
		return strings.Contains(lines.String(), `"type":"kernex.device.online"`) && strings.Contains(plain.String(), "device.online")
	})
	stop()
	for range 2 {
		if c := <-codes; c != exitDone {
			t.Errorf("exit code %d: %s", c, &errs)
		}
	}
	contains(t, plain.String(), id)
	for line := range strings.SplitSeq(strings.TrimSpace(lines.String()), "\n") {
		var e protocol.CloudEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.ID == "" {
			t.Errorf("%v in %s", err, line)
		}
	}
}

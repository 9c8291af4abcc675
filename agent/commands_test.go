package agent_test

import (
	"bytes"
	"crypto/ed25519"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func TestAConfigurationIsAppliedAtOnceAlsoDuringADeployment(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	hold := filepath.Join(d.dir, "state", "hold")
	slow := o.deploy(d.DeviceID(), o.pack("1.0.0", manifest, with(good(), "deploy.sh", "#!/bin/sh\nwhile [ ! -e $KERNEX_STATE_DIR/hold ]; do sleep 0.02; done\n")))
	o.send(slow, o.key)
	o.await("the deployment to run", func() bool { return len(o.results) > 0 && o.results[len(o.results)-1].State == fleet.TargetInstalling })
	c := o.command(d.DeviceID(), protocol.CommandConfigure)
	c.Configure = &protocol.Configure{Config: fleet.Config{Version: 2, HeartbeatIntervalS: 1, HeartbeatTimeoutS: 5, DeployTimeoutS: 60, LogLevel: "warn", Metadata: map[string]any{"threshold": 0.5}}}
	o.send(c, o.key)
	if r := o.final(c.ID); r.State != fleet.TargetSucceeded {
		t.Fatalf("%+v", r)
	}
	o.await("its outcome in the state report", func() bool {
		s := o.states[len(o.states)-1]
		return s.ConfigVersion == 2 && s.ConfigOutcome == "applied"
	})
	o.edit(func() { o.beats = nil })
	o.await("heartbeats each second", func() bool { return len(o.beats) >= 3 })
	old := o.command(d.DeviceID(), protocol.CommandConfigure)
	old.Configure = &protocol.Configure{Config: fleet.DefaultConfig()}
	o.send(old, o.key)
	if r := o.final(old.ID); r.State != fleet.TargetRejected || r.Error.Code != fleet.CodeSuperseded {
		t.Errorf("an older version: %+v", r)
	}
	if err := os.WriteFile(hold, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o.send(slow, o.key)
	if r := o.final(slow.ID); r.State != fleet.TargetRolledBack && r.State != fleet.TargetSucceeded {
		t.Errorf("the deployment: %+v", r)
	}
	text, err := os.ReadFile(filepath.Join(d.dir, "device_config.json"))
	if err != nil || !strings.Contains(string(text), `"threshold": 0.5`) {
		t.Errorf("the cache: %v\n%s", err, text)
	}
}

func TestACancelEndsADownloadInItsMiddle(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	begun := make(chan struct{})
	o.edit(func() {
		o.serve = func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte("some"))
			w.(http.Flusher).Flush()
			close(begun)
			<-r.Context().Done()
		}
	})
	c := o.deploy(d.DeviceID(), o.pack("1.0.0", manifest, good()))
	o.send(c, o.key)
	<-begun
	cancel := o.command(d.DeviceID(), protocol.CommandCancel)
	cancel.Cancel = &protocol.Cancel{Command: c.ID}
	o.send(cancel, o.key)
	if r := o.final(c.ID); r.State != fleet.TargetCancelled || r.Error.Code != fleet.CodeCancelled {
		t.Errorf("%+v", r)
	}
	if r := o.final(cancel.ID); r.State != fleet.TargetSucceeded {
		t.Errorf("%+v", r)
	}
	late := o.command(d.DeviceID(), protocol.CommandCancel)
	late.Cancel = &protocol.Cancel{Command: "cmd-later"}
	o.send(late, o.key)
	o.final(late.ID)
	early := o.deploy(d.DeviceID(), o.pack("1.0.0", manifest, good()))
	early.ID = "cmd-later"
	o.send(early, o.key)
	if r := o.final(early.ID); r.State != fleet.TargetCancelled {
		t.Errorf("a command that was cancelled before it came: %+v", r)
	}
}

func TestCommandsThatBreakARuleAreRefused(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	ref := o.pack("1.0.0", manifest, good())
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	forged := o.deploy(d.DeviceID(), ref)
	o.send(forged, stranger)
	foreign := o.deploy("other-device", ref)
	payload, err := protocol.SignCommand(foreign, o.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.broker.Publish(t.Context(), o.topics.Device(d.DeviceID(), protocol.KindCommand), payload, 1, false); err != nil {
		t.Fatal(err)
	}
	o.edit(func() { o.seq = 10 })
	mark := o.command(d.DeviceID(), protocol.CommandRotateKey)
	mark.ClosedThrough = 8
	o.send(mark, o.key)
	if r := o.final(mark.ID); r.State != fleet.TargetRejected || r.Error.Code != fleet.CodeUnsupported {
		t.Errorf("rotate_key: %+v", r)
	}
	for name, tc := range map[string]struct {
		change func(*protocol.Command)
		code   fleet.Code
	}{
		"stale seq":      {func(c *protocol.Command) { c.Seq = 8 }, fleet.CodeStaleSeq},
		"expired":        {func(c *protocol.Command) { c.NotAfter = time.Now().Add(-time.Minute).Unix() }, fleet.CodeExpired},
		"a poor archive": {func(c *protocol.Command) { c.Deploy.Bundle.Release = strings.Repeat("0", 64) }, fleet.CodeChecksum},
		"another bundle": {func(c *protocol.Command) { c.Deploy.Bundle.Version = "9.9.9" }, fleet.CodeChecksum},
		"another arch": {func(c *protocol.Command) {
			c.Deploy.Bundle = o.pack("1.0.1", `"arch":["mips"],`+manifest, good())
		}, fleet.CodeWrongDevice},
	} {
		c := o.deploy(d.DeviceID(), ref)
		tc.change(&c)
		o.send(c, o.key)
		if r := o.final(c.ID); r.Error == nil || r.Error.Code != tc.code || r.State != fleet.TargetRejected && r.State != fleet.TargetFailed {
			t.Errorf("%s: %+v %+v", name, r, r.Error)
		}
	}
	o.edit(func() {
		for _, r := range o.results {
			if r.Command == forged.ID || r.Command == foreign.ID {
				t.Errorf("an answer to a command that is not ours: %+v", r)
			}
		}
	})
	if d.current(t) != "" {
		t.Error("something was installed")
	}
}

func TestAResultIsSentAgainUntilItIsAcknowledged(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	o.edit(func() { o.mute = true })
	c := o.deploy(d.DeviceID(), o.pack("1.0.0", manifest, good()))
	o.send(c, o.key)
	o.final(c.ID)
	d.stop()
	o.edit(func() { o.results = nil })
	d = start(o, config(o, d.dir))
	if r := o.final(c.ID); r.State != fleet.TargetSucceeded {
		t.Fatalf("%+v", r)
	}
	o.edit(func() { o.results, o.mute = nil, false })
	if r := o.final(c.ID); r.State != fleet.TargetSucceeded { // within 10 s, without a reconnect
		t.Fatalf("%+v", r)
	}
	wait(t, "the ack to be journaled", func() bool {
		text, _ := os.ReadFile(filepath.Join(d.dir, "journal"))
		const key = `"update/pending":`
		i := bytes.LastIndex(text, []byte(key))
		return i >= 0 && bytes.HasPrefix(text[i+len(key):], []byte("[]"))
	}, func() string { return "" })
	d.stop()
	o.edit(func() { o.results, o.states = nil, nil })
	start(o, config(o, d.dir))
	o.await("the next session", func() bool { return len(o.states) > 0 })
	again := o.command(d.DeviceID(), protocol.CommandRestart)
	o.send(again, o.key)
	o.final(again.ID)
	o.edit(func() {
		for _, r := range o.results {
			if r.Command == c.ID {
				t.Errorf("an acknowledged result came again: %+v", r)
			}
		}
	})
}

func TestAURLThatIsRefusedIsRenewedOverMQTT(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	ref := o.pack("1.0.0", manifest, good())
	fresh := ref.URL
	c := o.deploy(d.DeviceID(), ref)
	c.Deploy.Bundle.URL = o.archives.URL + "/none"
	o.edit(func() {
		o.serve = func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/none" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			o.mu.Lock()
			o.serve = nil
			o.mu.Unlock()
			o.archive(w, r)
		}
	})
	o.send(c, o.key)
	o.await("a request for a URL", func() bool {
		return len(o.requests) > 0 && o.requests[0] == protocol.Request{Want: protocol.WantURL, Command: c.ID}
	})
	c.Deploy.Bundle.URL = fresh
	o.send(c, o.key)
	if r := o.final(c.ID); r.State != fleet.TargetSucceeded {
		t.Fatalf("%+v %+v", r, r.Error)
	}
}

func TestAPendingDeviceHeartbeatsAndGoesOnOnceItIsApproved(t *testing.T) {
	t.Parallel()
	o := newOrchestrator(t)
	o.edit(func() { o.pending = true })
	cfg := config(o, t.TempDir())
	cfg.EnrollToken = ""
	d := start(o, cfg)
	o.await("a heartbeat", func() bool { return len(o.beats) > 0 })
	o.edit(func() {
		if len(o.states) > 0 {
			t.Error("a pending device reported state")
		}
		o.pending = false
	})
	o.broker.Kick(d.DeviceID())
	o.await("its state", func() bool { return len(o.states) > 0 })
}

func TestStateDirectoriesThatAreNotInOrderAreRefused(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	if _, err := agent.New(config(o, d.dir)); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second agent: %v", err)
	}
	d.stop()
	key := filepath.Join(d.dir, "identity", "key.pem")
	for _, path := range []string{key, filepath.Join(d.dir, "device_config.json"), filepath.Join(d.dir, "journal")} {
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := agent.New(config(o, d.dir)); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s of mode 0644: %v", path, err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.New(config(o, d.dir)); err == nil || !strings.Contains(err.Error(), "key.pem is missing") {
		t.Errorf("no key: %v", err)
	}
	if info, err := os.Stat(d.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory: %v %v", info.Mode(), err)
	}
}

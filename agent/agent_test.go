package agent_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/agent/run"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/logging"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// The test binary is the agents' shim.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == run.ShimCommand {
		os.Exit(run.Shim(os.Args[2:]))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if built.Load() {
			path, _ := binary() // for its folder; an error was reported
			_ = os.RemoveAll(filepath.Dir(path))
		}
		os.Exit(code)
	}))
}

// device is one agent in this process.
type device struct {
	*agent.Agent
	dir  string
	stop func()
}

func config(o *orchestrator, dir string) agent.Config {
	return agent.Config{State: dir, Broker: o.broker.URL, EnrollToken: claimToken, DeviceType: "test", Serial: "s1",
		Log: logging.Config{Out: testLog{o.t}, Format: "json"}, LogLevel: "debug"}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// start runs an agent until the test ends or stop is called.
func start(o *orchestrator, cfg agent.Config) *device {
	o.t.Helper()
	a, err := agent.New(cfg)
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stopped := false
	d := &device{Agent: a, dir: cfg.State, stop: func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			o.t.Errorf("the agent ended: %v", err)
		}
	}}
	o.t.Cleanup(d.stop)
	return d
}

// connected starts an enrolled agent and waits for its first state report.
func connected(t *testing.T) (*orchestrator, *device) {
	t.Helper()
	o := newOrchestrator(t)
	d := start(o, config(o, t.TempDir()))
	o.await("the first state report", func() bool { return len(o.states) > 0 })
	return o, d
}

// current returns what the current link of a device resolves to.
func (d *device) current(t *testing.T) string {
	t.Helper()
	target, err := os.Readlink(filepath.Join(d.dir, "current"))
	if os.IsNotExist(err) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(target, "releases/")
}

// Scripts of the test bundles: each appends what it does to the device's state.
const (
	deployScript = "#!/bin/sh\necho deploy $KERNEX_VERSION after [$KERNEX_PREVIOUS_VERSION] >> $KERNEX_STATE_DIR/did\n"
	runScript    = "#!/bin/sh\necho run $KERNEX_VERSION >> $KERNEX_STATE_DIR/did\necho $KERNEX_VERSION > $KERNEX_STATE_DIR/serving\nexec sleep 1000\n"
	healthScript = "#!/bin/sh\n[ \"$(cat $KERNEX_STATE_DIR/serving)\" = $KERNEX_VERSION ]\n"
	manifest     = `"deploy":{"script":"deploy.sh"},"health":{"script":"health.sh","interval_s":1,"timeout_s":5,"successes":1,"window_s":10},"run":{"command":["./run.sh"],"restart":"always","stop_timeout_s":2}`
)

func good() map[string]string {
	return map[string]string{"deploy.sh": deployScript, "run.sh": runScript, "health.sh": healthScript}
}

func with(files map[string]string, name, content string) map[string]string {
	files[name] = content
	return files
}

func (d *device) did(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, "state", "did"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestADeviceEnrolsAndReportsItself(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	o.await("a heartbeat", func() bool { return len(o.beats) > 0 })
	o.edit(func() {
		s, h := o.states[0], o.beats[0]
		if s.Session != 1 || s.Boot == "" || s.Status == "" || s.Arch == "" || s.ConfigVersion != 1 || s.ConfigOutcome != "applied" || s.Release != "" {
			t.Errorf("state: %+v", s)
		}
		if h.Session != 1 || h.Seq != 1 || h.CPUPct == nil || h.MemoryMB == nil || h.DiskPct == nil || h.UptimeS <= 0 || h.AgentVersion == "" || h.Status == "" || h.StateRev != s.StateRev {
			t.Errorf("heartbeat: %+v", h)
		}
	})
	id := d.DeviceID()
	d.stop()
	o.await("the goodbye", func() bool { return len(o.presences) == 1 })
	o.edit(func() {
		if p := o.presences[0]; p.Online || p.Session != 1 {
			t.Errorf("goodbye: %+v", p)
		}
		o.states = nil
	})
	again := start(o, config(o, d.dir))
	o.await("a second session", func() bool { return len(o.states) > 0 && o.states[0].Session == 2 })
	o.edit(func() {
		if again.DeviceID() != id || o.enrolled != 1 {
			t.Errorf("%s became %s, %d enrolments", id, again.DeviceID(), o.enrolled)
		}
	})
}

func TestADeploymentSucceedsAndARepeatedCommandDoesNothing(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	ref := o.pack("1.0.0", manifest, good())
	c := o.deploy(d.DeviceID(), ref)
	o.send(c, o.key)
	if r := o.final(c.ID); r.State != fleet.TargetSucceeded || r.Error != nil || r.DurationMS <= 0 {
		t.Fatalf("%+v", r)
	}
	if d.current(t) != ref.Release || d.did(t) != "deploy 1.0.0 after []\nrun 1.0.0\n" {
		t.Fatalf("current %q, did:\n%s", d.current(t), d.did(t))
	}
	o.await("a state report of it", func() bool {
		s := o.states[len(o.states)-1]
		return s.Release == ref.Release && s.BundleVersion == "1.0.0" && s.LastCommand == c.ID && s.LastCommandState == "succeeded" && s.HighestSeq == c.Seq
	})
	o.edit(func() { // the way there, in order
		var way []fleet.TargetState
		for _, r := range o.results {
			way = append(way, r.State)
		}
		want := []fleet.TargetState{fleet.TargetAccepted, fleet.TargetDownloading, fleet.TargetInstalling, fleet.TargetVerifying, fleet.TargetSucceeded}
		for i := range want {
			if i >= len(way) || way[i] != want[i] {
				t.Errorf("reported %v, want %v", way, want)
				break
			}
		}
		o.results = nil
	})
	o.send(c, o.key)
	if r := o.final(c.ID); r.State != fleet.TargetSucceeded {
		t.Errorf("the repeat: %+v", r)
	}
	if r := o.run(d.DeviceID(), ref); r.State != fleet.TargetSucceeded { // the same release by another command
		t.Errorf("again: %+v", r)
	}
	if d.did(t) != "deploy 1.0.0 after []\nrun 1.0.0\n" {
		t.Errorf("it was done twice:\n%s", d.did(t))
	}
	left, err := os.ReadDir(filepath.Join(d.dir, "staging"))
	archives, err2 := os.ReadDir(filepath.Join(d.dir, "archives"))
	if err != nil || err2 != nil || len(left)+len(archives) != 0 {
		t.Errorf("left over: %v %v %v %v", left, archives, err, err2)
	}
}

func TestAFailingUpdateReturnsTheDeviceByItself(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		manifest string
		files    map[string]string
		code     fleet.Code
		words    string
		output   string
		did      string
	}{
		"deploy script": {manifest, with(good(), "deploy.sh", "#!/bin/sh\necho no license for this site >&2\nexit 3\n"), fleet.CodeScript,
			"deploy.sh: exit status 3: no license for this site", "no license", "deploy 1.0.0 after [2.0.0]\nrun 1.0.0\n"},
		"rollback script": {`"rollback":{"script":"rollback.sh"},` + manifest, with(with(good(), "deploy.sh", "#!/bin/sh\nexit 3\n"), "rollback.sh", "#!/bin/sh\necho rollback $KERNEX_VERSION >> $KERNEX_STATE_DIR/did\n"),
			fleet.CodeScript, "exit status 3", "", "rollback 2.0.0\nrun 1.0.0\n"},
		"health check": {strings.Replace(manifest, `"window_s":10`, `"window_s":2`, 1), with(good(), "health.sh", "#!/bin/sh\necho model answers garbage\nexit 1\n"), fleet.CodeHealth,
			"model answers garbage", "model answers garbage", "deploy 2.0.0 after [1.0.0]\nrun 2.0.0\ndeploy 1.0.0 after [2.0.0]\nrun 1.0.0\n"},
		"program": {strings.Replace(manifest, `"always"`, `"never"`, 1), with(good(), "run.sh", "#!/bin/sh\necho run $KERNEX_VERSION >> $KERNEX_STATE_DIR/did\necho out of memory\nexit 9\n"), fleet.CodeHealth,
			"exit status 9", "out of memory", "deploy 2.0.0 after [1.0.0]\nrun 2.0.0\ndeploy 1.0.0 after [2.0.0]\nrun 1.0.0\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, d := connected(t)
			old := o.pack("1.0.0", manifest, good())
			if r := o.run(d.DeviceID(), old); r.State != fleet.TargetSucceeded {
				t.Fatalf("%+v", r)
			}
			r := o.run(d.DeviceID(), o.pack("2.0.0", tc.manifest, tc.files))
			if r.State != fleet.TargetRolledBack || r.Error == nil || r.Error.Code != tc.code || !strings.Contains(r.Error.Message, tc.words) || !strings.Contains(r.Output, tc.output) {
				t.Fatalf("%+v %+v", r, r.Error)
			}
			if d.current(t) != old.Release {
				t.Errorf("current is %s", d.current(t))
			}
			wait(t, "the old program to serve", func() bool {
				return d.did(t) == "deploy 1.0.0 after []\nrun 1.0.0\n"+tc.did
			}, func() string { return d.did(t) })
			if n := o.states[len(o.states)-1]; n.Release != old.Release {
				t.Errorf("state: %+v", n)
			}
		})
	}
}

func wait(t *testing.T, what string, ok func() bool, got func() string) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited in vain for %s: %s", what, got())
		case <-tick.C:
		}
	}
}

func TestAFirstDeploymentThatFailsLeavesNothingCurrent(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	r := o.run(d.DeviceID(), o.pack("1.0.0", manifest, with(good(), "deploy.sh", "#!/bin/sh\nexit 1\n")))
	if r.State != fleet.TargetRolledBack || d.current(t) != "" {
		t.Fatalf("%+v, current %q", r, d.current(t))
	}
}

func TestARollbackUsesTheReleaseOnDisk(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	old, next := o.pack("1.0.0", manifest, good()), o.pack("1.1.0", manifest, good())
	for _, ref := range []protocol.BundleRef{old, next} {
		if r := o.run(d.DeviceID(), ref); r.State != fleet.TargetSucceeded {
			t.Fatalf("%+v", r)
		}
	}
	o.edit(func() { o.served = 0 })
	c := o.deploy(d.DeviceID(), old)
	c.Type = protocol.CommandRollback
	o.send(c, o.key)
	if r := o.final(c.ID); r.State != fleet.TargetSucceeded || d.current(t) != old.Release {
		t.Fatalf("%+v", r)
	}
	o.edit(func() {
		if o.served != 0 {
			t.Errorf("%d downloads", o.served)
		}
	})
}

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
	mark := o.command(d.DeviceID(), protocol.CommandRestart)
	mark.ClosedThrough = 8
	o.send(mark, o.key)
	if r := o.final(mark.ID); r.State != fleet.TargetRejected || r.Error.Code != fleet.CodeUnsupported {
		t.Errorf("restart: %+v", r)
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

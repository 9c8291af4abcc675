package agent_test

import (
	"context"
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

// config is what an agent of a test needs. Its shim is the real program: this
// one takes long to start, the more so with the race detector.
func config(o *orchestrator, dir string) agent.Config {
	o.t.Helper()
	path, err := binary()
	if err != nil {
		o.t.Fatal(err)
	}
	return agent.Config{State: dir, Broker: o.broker.URL, EnrollToken: claimToken, DeviceType: "test", Serial: "s1", Shim: []string{path, run.ShimCommand},
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

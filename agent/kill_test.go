package agent_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// built says whether binary has run.
var built atomic.Bool

// binary builds the real program, once.
var binary = sync.OnceValues(func() (string, error) {
	built.Store(true)
	dir, err := os.MkdirTemp("", "kernex-agent-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kernex-agent")
	out, err := exec.Command("go", "build", "-o", path, "./cmd/kernex-agent").CombinedOutput()
	if err != nil {
		_, _ = os.Stderr.Write(out)
	}
	return path, err
})

// process is the real agent.
type process struct {
	cmd *exec.Cmd
	dir string
}

func launch(o *orchestrator, dir string) *process {
	o.t.Helper()
	path, err := binary()
	if err != nil {
		o.t.Fatal(err)
	}
	p := &process{dir: dir, cmd: exec.Command(path, "--state", dir, "--log-level", "debug")}
	p.cmd.Env = []string{"KERNEX_BROKER=" + o.broker.URL, "KERNEX_ENROLL_TOKEN=" + claimToken}
	p.cmd.Stderr = testLog{o.t}
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(p.kill)
	return p
}

// kill is SIGKILL, and the end of the process.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // killed, or killed before
}

// stop is SIGTERM; the agent has to end cleanly.
func (p *process) stop(t *testing.T) {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
}

// gate is a line of a script that waits for the file go, showing that it lives.
const gate = `while [ ! -e $KERNEX_STATE_DIR/go ]; do date +%s%N > $KERNEX_STATE_DIR/beat; sleep 0.02; done; `

func TestAnAgentThatIsKilledInAnyStateEndsWithTheRightReleaseAndResult(t *testing.T) {
	t.Parallel()
	slowHealth := strings.Replace(manifest, `"timeout_s":5`, `"timeout_s":60`, 1)
	slowHealth = strings.Replace(slowHealth, `"window_s":10`, `"window_s":60`, 1)
	for name, tc := range map[string]struct {
		manifest string
		files    map[string]string
		at       string // a state that the orchestrator hears, or the script that beats
		want     fleet.TargetState
		code     fleet.Code
	}{
		"accepted":      {manifest, good(), "accepted", fleet.TargetSucceeded, ""},
		"downloading":   {manifest, good(), "archive", fleet.TargetSucceeded, ""},
		"installing":    {manifest, good(), "installing", "", ""}, // before or during the script
		"deploy script": {manifest, with(good(), "deploy.sh", "#!/bin/sh\n"+gate), "beat", fleet.TargetRolledBack, fleet.CodeInterrupted},
		"health":        {slowHealth, with(good(), "health.sh", "#!/bin/sh\n"+gate), "beat", fleet.TargetSucceeded, ""},
		"rolling back": {`"rollback":{"script":"rollback.sh"},` + manifest, with(with(good(), "deploy.sh", "#!/bin/sh\nexit 4\n"), "rollback.sh", "#!/bin/sh\n"+gate),
			"beat", fleet.TargetRolledBack, fleet.CodeScript},
		"ended": {manifest, good(), "succeeded", fleet.TargetSucceeded, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrchestrator(t)
			dir := t.TempDir()
			p := launch(o, dir)
			o.await("its state", func() bool { return len(o.states) > 0 })
			var id string
			o.edit(func() {
				for i := range o.devices {
					id = i
				}
			})
			old := o.pack("1.0.0", manifest, good())
			if r := o.run(id, old); r.State != fleet.TargetSucceeded {
				t.Fatalf("%+v", r)
			}
			next := o.pack("2.0.0", tc.manifest, tc.files)
			c := o.deploy(id, next)
			d := &device{dir: dir}
			reached := d.arm(o, tc.at, c)
			o.edit(func() { o.mute = true })
			o.send(c, o.key)
			reached()
			p.kill()
			d.still(t)
			if err := os.WriteFile(filepath.Join(dir, "state", "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			o.edit(func() { o.mute, o.serve, o.results, o.states = false, nil, nil, nil })
			p = launch(o, dir)
			o.await("the next session", func() bool { return len(o.states) > 0 })
			if name == "accepted" || name == "downloading" { // as dispatch does at a birth
				o.send(c, o.key)
			}
			r := o.final(c.ID)
			if tc.want != "" && r.State != tc.want || tc.code != "" && (r.Error == nil || r.Error.Code != tc.code) {
				t.Fatalf("%+v %+v", r, r.Error)
			}
			want := old
			if r.State == fleet.TargetSucceeded {
				want = next
			}
			d.whole(t, want)
			o.await("the true release in the state report", func() bool { return o.states[len(o.states)-1].Release == want.Release })
			p.stop(t)
		})
	}
}

// arm prepares to notice that the agent is where it is to be killed and returns
// what waits for it.
func (d *device) arm(o *orchestrator, at string, c protocol.Command) func() {
	o.t.Helper()
	switch at {
	case "beat":
		return func() {
			wait(o.t, "the script to run", func() bool {
				_, err := os.Stat(filepath.Join(d.dir, "state", "beat"))
				return err == nil
			}, func() string { return "" })
		}
	case "archive":
		begun := make(chan struct{})
		o.edit(func() { o.serve = stuck(begun, o.files[c.Deploy.Bundle.Checksum][:100]) })
		return func() { <-begun }
	}
	return func() {
		o.await(at, func() bool {
			for _, r := range o.results {
				if r.Command == c.ID && string(r.State) == at {
					return true
				}
			}
			return false
		})
	}
}

// still checks that no script has survived the agent.
func (d *device) still(t *testing.T) {
	t.Helper()
	beat := filepath.Join(d.dir, "state", "beat")
	before, _ := os.ReadFile(beat)
	timer := time.NewTimer(200 * time.Millisecond)
	<-timer.C
	if after, _ := os.ReadFile(beat); string(before) != string(after) {
		t.Error("a script goes on after its agent was killed")
	}
}

// whole checks the disk and what runs: I1, I8.
func (d *device) whole(t *testing.T, want protocol.BundleRef) {
	t.Helper()
	if d.current(t) != want.Release {
		t.Fatalf("current is %s, want %s of %s", d.current(t), want.Release, want.Version)
	}
	for _, dir := range []string{"staging", "archives"} {
		wait(t, dir+" to be empty", func() bool {
			left, err := os.ReadDir(filepath.Join(d.dir, dir))
			return err == nil && len(left) == 0
		}, func() string { return "" })
	}
	wait(t, want.Version+" to serve", func() bool {
		text, _ := os.ReadFile(filepath.Join(d.dir, "state", "serving"))
		return strings.TrimSpace(string(text)) == want.Version
	}, func() string { return d.did(t) })
}

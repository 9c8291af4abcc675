package agent_test

import (
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// launchOn starts the real agent with its state on a file system of that size
// that only it sees.
func launchOn(o *orchestrator, size string) *process {
	o.t.Helper()
	path, err := binary()
	if err != nil {
		o.t.Fatal(err)
	}
	const script = `mount -t tmpfs -o size=$1 none "$2" && exec "$3" --state "$2/state" --log-level debug`
	p := &process{dir: o.t.TempDir()}
	p.cmd = exec.Command("unshare", "--map-root-user", "--mount", "sh", "-c", script, "-", size, p.dir, path)
	p.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "KERNEX_BROKER=" + o.broker.URL, "KERNEX_ENROLL_TOKEN=" + claimToken}
	p.cmd.Stderr = testLog{o.t}
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(p.kill)
	return p
}

func TestADiskOf8MBRefusesWhatCannotFitBeforeTheDownloadAndTheDeviceGoesOn(t *testing.T) {
	t.Parallel()
	o := newOrchestrator(t)
	p := launchOn(o, "8m")
	o.await("its state", func() bool { return len(o.states) > 0 })
	var id string
	o.edit(func() {
		for i := range o.devices {
			id = i
		}
	})
	noise := make([]byte, 4<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	big := o.pack("1.0.0", manifest, with(good(), "data", string(noise)))
	big.Parts, big.PartSize = nil, 0 // too many for a command
	thin := make([]byte, 9<<20)      // about 1:35
	for i := range thin {
		if i%1024 < 24 {
			thin[i] = noise[i%len(noise)]
		}
	}
	bomb := o.pack("1.0.1", manifest, with(good(), "data", string(thin)))
	bomb.Parts, bomb.PartSize = nil, 0
	bomb.Expanded = 9 << 20
	many := o.pack("1.0.2", manifest, good())
	many.Files = 1 << 30
	for name, ref := range map[string]protocol.BundleRef{"size": big, "expanded size": bomb, "number of files": many} {
		if r := o.run(id, ref); r.State != fleet.TargetFailed || r.Error == nil || r.Error.Code != fleet.CodeNoSpace {
			t.Errorf("%s: %+v %+v", name, r, r.Error)
		}
	}
	o.edit(func() {
		if o.served != 0 {
			t.Errorf("%d downloads were begun", o.served)
		}
	})
	lie := bomb // nobody told how large it is: what was downloaded is not extracted
	lie.Expanded = 0
	if r := o.run(id, lie); r.State != fleet.TargetFailed || r.Error == nil || r.Error.Code != fleet.CodeNoSpace {
		t.Errorf("a size that was not told: %+v %+v", r, r.Error)
	}
	fast := o.command(id, protocol.CommandConfigure)
	fast.Configure = &protocol.Configure{Config: fleet.DefaultConfig()}
	fast.Configure.Config.Version, fast.Configure.Config.HeartbeatIntervalS = 2, 1
	o.send(fast, o.key)
	o.final(fast.ID)
	o.edit(func() { o.beats = nil })
	o.await("heartbeats", func() bool { return len(o.beats) >= 3 })
	if r := o.run(id, o.pack("1.0.3", manifest, good())); r.State != fleet.TargetSucceeded {
		t.Errorf("one that fits: %+v %+v", r, r.Error)
	}
	p.stop(t)
	if left, err := filepath.Glob(filepath.Join(p.dir, "*")); err != nil || len(left) != 0 {
		t.Errorf("the file system was not its own: %v %v", left, err)
	}
}

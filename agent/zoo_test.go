package agent_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// running returns the command lines of the device's processes, found by their
// environment.
func (d *device) running() []string {
	var out []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !bytes.Contains(env, []byte("KERNEX_STATE_DIR="+d.dir+"/state\x00")) {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		out = append(out, strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte(" ")))))
	}
	return out
}

// sound holds I1, I7 and I8: current is one whole release, its program and
// nothing else runs, staging and archives are empty.
func (d *device) sound(t *testing.T, want protocol.BundleRef, additions ...string) {
	t.Helper()
	d.whole(t, want)
	dir := filepath.Join(d.dir, "releases", want.Release)
	for _, name := range additions {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if info, err := bundle.Check(dir); err != nil || info.Release != want.Release {
		t.Errorf("the release of %s: %v", want.Version, err)
	}
	if entries, err := os.ReadDir(filepath.Join(d.dir, "releases")); err != nil || len(entries) > 2 {
		t.Errorf("releases: %v, %v", entries, err)
	}
	for _, line := range d.running() {
		if strings.Contains(line, "4242") || strings.Contains(line, "deploy.sh") || strings.Contains(line, "rollback.sh") {
			t.Errorf("left running: %s", line)
		}
	}
}

// Hostile bundles on a device that runs a good one. Paths are relative to the
// release, which is the scripts' working directory.
var hostile = []struct {
	name   string
	deploy string            // body of deploy.sh
	files  map[string]string // others
	policy string            // manifest, instead of the usual
	want   fleet.TargetState
	code   fleet.Code
	words  string
	adds   []string // files that the script has added to its release
}{
	{name: "deletes its directory", deploy: `rm -rf "$KERNEX_RELEASE_DIR"`, want: fleet.TargetRolledBack, code: fleet.CodeScript, words: "of its own release"},
	{name: "deletes its directory and fails", deploy: `rm -rf "$KERNEX_RELEASE_DIR"; exit 1`, want: fleet.TargetRolledBack, code: fleet.CodeScript, words: "exit status 1"},
	{name: "changes its own files", deploy: `echo 'echo changed' >> run.sh`, want: fleet.TargetRolledBack, code: fleet.CodeScript, words: "run.sh of its own release"},
	{name: "changes and hides it", deploy: `sed -i s/sleep/SLEEP/ run.sh; touch -r health.sh run.sh`, want: fleet.TargetRolledBack, code: fleet.CodeScript, words: "run.sh of its own release"},
	{name: "changes its manifest", deploy: `echo >> manifest.json`, want: fleet.TargetRolledBack, code: fleet.CodeScript, words: "manifest.json of its own release"},
	{name: "replaces a file by a link", deploy: `mv run.sh ../../state/r; ln -s ../../state/r run.sh`, want: fleet.TargetRolledBack, code: fleet.CodeScript, words: "run.sh of its own release"},
	{name: "replaces a file by a pipe", deploy: `rm run.sh; mkfifo -m 755 run.sh`, want: fleet.TargetRolledBack, code: fleet.CodeScript, words: "run.sh of its own release"},
	{name: "touches its own files", deploy: `touch run.sh; ln run.sh ../../state/hard`, want: fleet.TargetSucceeded},
	{name: "adds to its own files", deploy: `echo cached > cache`, want: fleet.TargetSucceeded, adds: []string{"cache"}},
	{name: "removes current", deploy: `rm ../../current`, want: fleet.TargetSucceeded},
	{name: "removes current and fails", deploy: `rm ../../current; exit 1`, want: fleet.TargetRolledBack, code: fleet.CodeScript},
	{name: "makes current a directory", deploy: `rm ../../current; mkdir ../../current; echo x > ../../current/x`, want: fleet.TargetSucceeded},
	{name: "makes current a directory and fails", deploy: `rm ../../current; mkdir ../../current; echo x > ../../current/x; exit 1`, want: fleet.TargetRolledBack, code: fleet.CodeScript},
	{name: "points current elsewhere and fails", deploy: `ln -sfn /tmp ../../current; exit 1`, want: fleet.TargetRolledBack, code: fleet.CodeScript},
	{name: "writes outside", deploy: `for d in releases staging archives; do mkdir -p ../../$d/junk; echo x > ../../$d/junk/f; echo x > ../../$d/f; done`, want: fleet.TargetSucceeded},
	{name: "removes the agent's folders", deploy: `rm -rf ../../staging ../../archives ../../log`, want: fleet.TargetSucceeded},
	{name: "leaves daemons", deploy: `setsid sleep 4242 & sleep 4242 & (setsid sh -c 'trap "" TERM HUP; sleep 4242; :' &)`, want: fleet.TargetSucceeded},
	{name: "hangs", deploy: `setsid sleep 4242 & exec sleep 4242`, policy: strings.Replace(manifest, `"deploy.sh"`, `"deploy.sh","timeout_s":1`, 1), want: fleet.TargetRolledBack, code: fleet.CodeTimeout, words: "killed after its limit of 1s"},
	{name: "exits by a signal", deploy: `kill -SEGV $$`, want: fleet.TargetRolledBack, code: fleet.CodeScript, words: "segmentation fault"},
	{name: "has a health check that leaves daemons", deploy: `:`, files: map[string]string{"health.sh": "#!/bin/sh\nsetsid sleep 4242 &\n[ \"$(cat $KERNEX_STATE_DIR/serving)\" = $KERNEX_VERSION ]\n"}, want: fleet.TargetSucceeded},
	{name: "has a program that will not stop", deploy: `:`, files: map[string]string{"run.sh": "#!/bin/sh\ntrap '' TERM HUP INT\nsetsid sleep 4343 &\necho $KERNEX_VERSION > $KERNEX_STATE_DIR/serving\nwhile :; do sleep 0.05; done\n"}, want: fleet.TargetSucceeded},
	{name: "has a program that changes its release", deploy: `:`, files: map[string]string{"run.sh": "#!/bin/sh\necho $KERNEX_VERSION > $KERNEX_STATE_DIR/serving\necho x > cache\nexec sleep 1000\n"}, want: fleet.TargetSucceeded, adds: []string{"cache"}},
}

func TestEveryHostileBundleEndsInAKnownStateAndTheDeviceGoesOn(t *testing.T) {
	t.Parallel()
	for _, h := range hostile {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			o, d := connected(t)
			old := o.pack("1.0.0", manifest, good())
			if r := o.run(d.DeviceID(), old); r.State != fleet.TargetSucceeded {
				t.Fatalf("%+v %+v", r, r.Error)
			}
			files := with(good(), "deploy.sh", "#!/bin/sh\n"+h.deploy+"\n")
			for name, text := range h.files {
				files[name] = text
			}
			policy := h.policy
			if policy == "" {
				policy = manifest
			}
			next := o.pack("2.0.0", policy, files)
			r := o.run(d.DeviceID(), next)
			if r.State != h.want || h.code != "" && (r.Error == nil || r.Error.Code != h.code || !strings.Contains(r.Error.Message, h.words)) {
				t.Errorf("%+v %+v", r, r.Error)
			}
			want := old
			if r.State == fleet.TargetSucceeded {
				want = next
			}
			d.sound(t, want, h.adds...)
			last := o.pack("3.0.0", manifest, good())
			if r := o.run(d.DeviceID(), last); r.State != fleet.TargetSucceeded {
				t.Fatalf("the next deployment: %+v %+v", r, r.Error)
			}
			d.sound(t, last)
			if left := d.running(); slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, "4343") }) {
				t.Errorf("the program before has left %q", left)
			}
			d.stop()
			if left := d.running(); len(left) > 0 {
				t.Errorf("after the agent's end: %q", left)
			}
		})
	}
}

// Nothing can be returned to: the device says so, keeps talking, and takes an
// operator's rollback.
func TestADeviceWhoseReleasesAScriptHasRemovedIsInconsistentUntilARollback(t *testing.T) {
	t.Parallel()
	for name, deploy := range map[string]string{
		"all":        "rm -rf ../*; exit 1",
		"the before": "rm -rf ../../current/; rm -rf ../$KERNEX_CONFIG_NONE$(readlink ../../current | cut -d/ -f2); exit 1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrchestrator(t)
			cfg := config(o, t.TempDir())
			cfg.Retry = 10_000_000 // 10 ms
			d := start(o, cfg)
			o.await("the first state report", func() bool { return len(o.states) > 0 })
			old := o.pack("1.0.0", manifest, good())
			if r := o.run(d.DeviceID(), old); r.State != fleet.TargetSucceeded {
				t.Fatalf("%+v", r)
			}
			r := o.run(d.DeviceID(), o.pack("2.0.0", manifest, with(good(), "deploy.sh", "#!/bin/sh\n"+deploy+"\n")))
			if r.State != fleet.TargetFailed || r.Error.Code != fleet.CodeInconsistent {
				t.Fatalf("%+v %+v", r, r.Error)
			}
			o.await("the error status", func() bool { return o.states[len(o.states)-1].Status == "error" })
			if r := o.run(d.DeviceID(), o.pack("3.0.0", manifest, good())); r.State != fleet.TargetRejected || r.Error.Code != fleet.CodeInconsistent {
				t.Errorf("a deployment: %+v", r)
			}
			c := o.deploy(d.DeviceID(), old)
			c.Type = protocol.CommandRollback
			o.send(c, o.key)
			if r := o.final(c.ID); r.State != fleet.TargetSucceeded {
				t.Fatalf("the rollback: %+v %+v", r, r.Error)
			}
			d.sound(t, old)
		})
	}
}

// A program that runs has time to do what a deploy script cannot.
func TestAProgramThatRemovesCurrentChangesNothingForLong(t *testing.T) {
	t.Parallel()
	for name, does := range map[string]string{
		"removes":    "rm ../../current",
		"replaces":   "rm ../../current; mkdir ../../current; echo x > ../../current/x",
		"misdirects": "ln -sfn releases/none ../../current",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, d := connected(t)
			run := "#!/bin/sh\necho $KERNEX_VERSION > $KERNEX_STATE_DIR/serving\nwhile [ ! -e $KERNEX_STATE_DIR/now ]; do sleep 0.02; done\nrm $KERNEX_STATE_DIR/now\n" + does + "\necho done > $KERNEX_STATE_DIR/done\nexec sleep 1000\n"
			evil := o.pack("1.0.0", manifest, with(good(), "run.sh", run))
			if r := o.run(d.DeviceID(), evil); r.State != fleet.TargetSucceeded {
				t.Fatalf("%+v %+v", r, r.Error)
			}
			attack := func() {
				t.Helper()
				_ = os.Remove(filepath.Join(d.dir, "state", "done"))
				if err := os.WriteFile(filepath.Join(d.dir, "state", "now"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				wait(t, "the program's attack", func() bool { _, err := os.Stat(filepath.Join(d.dir, "state", "done")); return err == nil }, func() string { return "" })
			}
			attack()
			d.stop()
			if err := os.Remove(filepath.Join(d.dir, "state", "serving")); err != nil {
				t.Fatal(err)
			}
			d = start(o, config(o, d.dir))
			wait(t, "current to be right", func() bool {
				target, _ := os.Readlink(filepath.Join(d.dir, "current"))
				return target == "releases/"+evil.Release
			}, func() string { return "" })
			d.sound(t, evil) // serves again, after a restart
			attack()
			next := o.pack("2.0.0", manifest, with(good(), "deploy.sh", "#!/bin/sh\nexit 1\n"))
			if r := o.run(d.DeviceID(), next); r.State != fleet.TargetRolledBack {
				t.Fatalf("%+v %+v", r, r.Error)
			}
			d.sound(t, evil) // a failing deployment has something to return to
		})
	}
}

func TestAScriptThatFillsTheDiskIsUndone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		t.Logf("no mounts here (%v); nothing else to check", err)
		return
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	o := newOrchestrator(t)
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
	d := &device{dir: dir}
	c := o.deploy(id, o.pack("2.0.0", manifest, with(good(), "deploy.sh", "#!/bin/sh\ncat /dev/zero > fill; exit 1\n")))
	o.send(c, o.key)
	ended := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(ended) }()
	// Whether the agent can go on or has to be started again, as its unit does,
	// it comes back to the old version and says so.
	for range 5 {
		done := func() bool {
			return slices.ContainsFunc(o.results, func(r protocol.Result) bool { return r.Command == c.ID && r.State.Final() })
		}
		over := false
		wait(t, "a result or the agent's end", func() bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			select {
			case <-ended:
				over = true
			default:
			}
			return over || done()
		}, func() string { return "" })
		if !over {
			break
		}
		t.Log("the agent ended; once more")
		p = launch(o, dir)
		ended = make(chan struct{})
		go func() { _ = p.cmd.Wait(); close(ended) }()
	}
	if r := o.final(c.ID); r.State != fleet.TargetRolledBack {
		t.Fatalf("%+v %+v", r, r.Error)
	}
	d.sound(t, old)
	_ = p.cmd.Process.Kill()
	<-ended
}

package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mark is the variable by which a test finds every process of its script.
const mark = "KERNEX_ZOO="

// left returns the processes that carry the mark, by their command lines.
func left(marked string) []string {
	var out []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !bytes.Contains(env, []byte(mark+marked+"\x00")) {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		out = append(out, filepath.Base(dir)+" "+string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
	}
	return out
}

// leftGroups are the cgroups of this process's programs that run now.
func leftGroups(s *Starter) []string {
	if s.limit == nil {
		return nil
	}
	dirs, _ := filepath.Glob(filepath.Join(s.limit.dir, groupPrefix+strconv.Itoa(os.Getpid())+"-*"))
	return dirs
}

// animal is a hostile script and what must come of it.
type animal struct {
	name   string
	script string
	limit  time.Duration // 0: it ends by itself, well within 20 s
	code   int           // -1: killed at its limit; anyFailure: not 0
	words  string        // in reason or output
	check  func(t *testing.T, dir string, o Outcome)
	// Only where it has a PID namespace: elsewhere it would reach other processes.
	namespace bool
	// Only where processes are counted.
	bounded bool
}

const anyFailure = -2

// daemon is a process that leaves group and session and minds no signal.
const daemon = `setsid sh -c 'trap "" TERM HUP INT; touch up; while :; do sleep 0.02; done' >/dev/null 2>&1 & while [ ! -e up ]; do sleep 0.01; done; `

var zoo = []animal{
	{name: "hang", script: `exec sleep 1000`, limit: 300 * time.Millisecond, code: -1, words: "killed after its limit"},
	{name: "busy loop", script: `while :; do :; done`, limit: 300 * time.Millisecond, code: -1},
	{name: "many processes", script: `i=0; while [ $i -lt 900 ]; do sleep 1000 & i=$((i+1)); done; echo all; exit 0`, code: anyFailure, words: "ork", bounded: true,
		check: func(t *testing.T, _ string, o Outcome) {
			if strings.Contains(o.Output, "all\n") {
				t.Error("it started them all")
			}
		}},
	{name: "fork bomb", script: `bomb() { bomb & bomb & wait; }; bomb 2>/dev/null`, limit: time.Second, code: anyFailure, bounded: true},
	{name: "fork bomb that detaches", script: `echo 'setsid "$0" & setsid "$0" & sleep 1000' > b; chmod +x b; sed -i '1i #!/bin/sh' b; ./b >/dev/null 2>&1; sleep 1000`, limit: time.Second, code: anyFailure, bounded: true},
	{name: "setsid daemon", script: daemon + `exit 0`, code: 0},
	{name: "setsid daemon and hang", script: daemon + `exec sleep 1000`, limit: 700 * time.Millisecond, code: -1},
	{name: "double fork holds the output", script: `(setsid sh -c 'echo child; sleep 1000' &); exit 0`, code: 0},
	{name: "a gigabyte of output", script: `yes 0123456789abcdef0123456789abcdef | head -c 1000000000; echo end >&2`, code: 0, words: "bytes left out]", check: func(t *testing.T, _ string, o Outcome) {
		if len(o.Output) > headBytes+tailBytes+100 || !strings.HasSuffix(o.Output, "end\n") {
			t.Errorf("%d bytes kept", len(o.Output))
		}
	}},
	{name: "closes its output", script: `exec <&- >&- 2>&-; sleep 0.05; exit 3`, code: 3},
	{name: "closes its output and hangs", script: `exec <&- >&- 2>&-; exec sleep 1000`, limit: 300 * time.Millisecond, code: -1},
	{name: "ignores signals", script: `trap '' TERM INT HUP QUIT USR1 USR2; while :; do sleep 0.02; done`, limit: 300 * time.Millisecond, code: -1},
	{name: "stops itself", script: `kill -STOP $$; exit 0`, limit: 300 * time.Millisecond, code: -1},
	{name: "stops its children", script: `sleep 1000 & kill -STOP $!; exit 4`, code: 4},
	{name: "deletes its directory", script: `rm -rf "$PWD"; exit 0`, code: 0},
	{name: "exits by SEGV", script: `kill -SEGV $$`, code: 139, words: "segmentation fault"},
	{name: "exits by KILL", script: `kill -KILL $$`, code: 137, words: "killed by signal killed"},
	{name: "asks for later", script: `exit 75`, code: ExitTryLater},
	{name: "kills its parent", script: daemon + `kill -KILL $PPID; sleep 0.1; exit 5`, code: 5, namespace: true},
	{name: "terminates its parent", script: `trap 'exit 6' TERM; kill -TERM $PPID; while :; do sleep 0.02; done`, code: 6},
	{name: "crashes its parent", script: daemon + `kill -SEGV $PPID; kill -ABRT $PPID; sleep 1000`, limit: 5 * time.Second, code: anyFailure, namespace: true},
	{name: "kills everything it can see", script: daemon + `kill -KILL -1; exit 7`, code: 7, namespace: true},
	{name: "kills the agent", script: `kill -KILL $AGENT && echo done; exit 8`, code: 8, namespace: true, check: func(t *testing.T, _ string, o Outcome) {
		if strings.Contains(o.Output, "done") {
			t.Error("it reached a process outside")
		}
	}},
	{name: "zombie maker", script: `i=0; while [ $i -lt 60 ]; do sh -c 'sleep 0.01 & exec sleep 1000' & i=$((i+1)); done; sleep 0.2; exit 0`, code: 0},
	{name: "slow drip", script: `while :; do printf .; sleep 0.02; done`, limit: 700 * time.Millisecond, code: -1, words: "."},
	{name: "changes its own file while it runs", script: `echo 'echo first; echo "exit 9" >> "$0"; sleep 0.05' > own.sh; sh own.sh`, code: 9, words: "first"},
	{name: "opens too many files", script: `ulimit -n 4096 && exit 0; exit 11`, code: 11},
	{name: "writes too large a file", script: `dd if=/dev/zero of=big bs=1 count=1 seek=2G 2>&1; e=$?; ls -l; exit $e`, code: anyFailure, check: func(t *testing.T, dir string, _ Outcome) {
		if i, err := os.Stat(filepath.Join(dir, "big")); err == nil && i.Size() > maxFileSize {
			t.Errorf("the file has %d bytes", i.Size())
		}
	}},
	{name: "looks for the agent's pipe", script: `echo x >&3 || exit 12`, code: anyFailure, words: "3"},
	{name: "leaves its cgroup", script: `for f in /sys/fs/cgroup/pids/cgroup.procs /sys/fs/cgroup/cgroup.procs; do [ -w $f ] && echo $$ > $f; done; ` + daemon + `exit 13`, code: 13, namespace: true, bounded: true},
}

// The whole zoo in each kind of cage that a machine may have. Every script ends
// in a known state, in bounded time, and leaves no process.
func TestEveryHostileScriptEndsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	here := starter()
	t.Logf("namespaces %v, processes not bounded because: %v", here.Namespaced(), here.Bounded())
	kinds := map[string]*Starter{"as on this machine": here}
	if here.Namespaced() {
		kinds["without a namespace"] = cage(false, here.limit)
		kinds["without a count"] = cage(true, nil)
		kinds["with neither"] = cage(false, nil)
	}
	for kind, s := range kinds {
		for _, a := range zoo {
			if a.namespace && !s.Namespaced() || a.bounded && s.Bounded() != nil {
				continue
			}
			t.Run(kind+"/"+a.name, func(t *testing.T) {
				t.Parallel()
				a.run(t, s)
			})
		}
	}
}

// cage is a Starter that may do only so much.
func cage(namespace bool, limit *taskLimit) *Starter {
	s := starter()
	s.once.Do(func() {})
	s.namespace, s.limit = namespace, limit
	if limit == nil {
		s.why = errors.New("as the test wants it")
	}
	return s
}

func (a animal) run(t *testing.T, s *Starter) {
	dir := filepath.Join(t.TempDir(), "release")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	marked := t.Name()
	limit := a.limit
	if limit == 0 {
		limit = 60 * time.Second
	}
	begun := time.Now()
	o := s.Script(context.Background(), sh(dir, a.script, mark+marked, "AGENT="+strconv.Itoa(os.Getpid())), limit)
	took := time.Since(begun)
	if p := left(marked); len(p) > 0 {
		t.Errorf("left running: %q", p)
	}
	if took > limit+10*time.Second || a.limit == 0 && took > 40*time.Second {
		t.Errorf("it took %s", took)
	}
	switch {
	case a.code == anyFailure && o.Reason != "":
	case a.code != o.Code || o.TimedOut != (a.code == -1) || (o.Reason == "") != (a.code == 0):
		t.Errorf("after %s: code %d, timed out %v, reason %q, output %.500q", took, o.Code, o.TimedOut, o.Reason, o.Output)
	}
	if !strings.Contains(o.Reason+o.Output, a.words) {
		t.Errorf("no %q in %q, %.500q", a.words, o.Reason, o.Output)
	}
	if a.check != nil {
		a.check(t, dir, o)
	}
}

// A tmpfs of its own is filled to the last byte.
func TestAScriptThatFillsTheDiskFailsAndTheDiskCanBeEmptied(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Logf("no mounts here (%v); nothing else to check", err)
		return
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	o := starter().Script(t.Context(), sh(dir, `i=0; while cat /dev/zero > fill$i; do i=$((i+1)); done; exit 1`, mark+t.Name()), 30*time.Second)
	if o.Code != 1 || !strings.Contains(o.Output, "No space left") || len(left(t.Name())) > 0 {
		t.Errorf("%+v, left %q", o, left(t.Name()))
	}
	o = starter().Script(t.Context(), sh(dir, `rm -f fill*`), 30*time.Second)
	if o.Code != 0 {
		t.Errorf("a script on a full disk: %+v", o)
	}
}

// agentDouble is the test binary as an agent that only runs one script.
const agentDouble = "agent-double"

// doubleMain is the life of agentDouble: kind, directory, mark.
func doubleMain(args []string) int {
	s := starter()
	if args[0] == "plain" {
		s = cage(false, nil)
	}
	s.Script(context.Background(), sh(args[1], daemon+`sleep 1000 & touch ready; exec sleep 1000`, mark+args[2]), time.Hour)
	return 1
}

func TestNothingOutlivesItsAgent(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"full", "plain"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cmd := exec.Command("/proc/self/exe", agentDouble, kind, dir, t.Name())
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the script to run", func() bool { _, err := os.Stat(filepath.Join(dir, "ready")); return err == nil })
			if len(left(t.Name())) < 4 {
				t.Errorf("only %q run", left(t.Name()))
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed
			begun := time.Now()
			waitFor(t, "every process to end", func() bool { return len(left(t.Name())) == 0 })
			t.Logf("all gone %s after the agent", time.Since(begun).Round(time.Millisecond))
		})
	}
}

func TestTheNumberOfProcessesIsBoundedByEitherVersionOfCgroups(t *testing.T) {
	t.Parallel()
	one, two := t.TempDir(), t.TempDir()
	for dir, files := range map[string]map[string]string{
		filepath.Join(one, "unit"): {},
		filepath.Join(two, "unit"): {"cgroup.controllers": "cpu pids\n", "cgroup.subtree_control": "cpu pids\n"},
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct{ mounts, own, want string }{
		"version 1":             {fmt.Sprintf("30 20 0:26 / %s rw - cgroup cgroup rw,cpu,pids\n", one), "5:cpu,pids:/unit\n0::/other\n", filepath.Join(one, "unit")},
		"version 2":             {fmt.Sprintf("30 20 0:26 / %s rw shared:4 - cgroup2 cgroup2 rw\n", two), "0::/unit\n", filepath.Join(two, "unit")},
		"below a mounted part":  {fmt.Sprintf("30 20 0:26 /docker/x %s rw - cgroup cgroup rw,pids\n", one), "5:pids:/docker/x/unit\n", filepath.Join(one, "unit")},
		"outside of that part":  {fmt.Sprintf("30 20 0:26 /docker/x %s rw - cgroup cgroup rw,pids\n", one), "5:pids:/docker/y\n", ""},
		"version 2 without one": {fmt.Sprintf("30 20 0:26 / %s rw - cgroup2 cgroup2 rw\n", one), "0::/unit\n", ""},
		"none":                  {"21 1 8:1 / / rw - ext4 /dev/root rw\n", "0::/\n", ""},
	} {
		if dir, unified := ownGroup(tc.mounts, tc.own); dir != tc.want || unified != (name == "version 2") {
			t.Errorf("%s: %q, %v", name, dir, unified)
		}
	}
	if err := enablePids(filepath.Join(two, "unit")); err != nil {
		t.Error(err)
	}
	if delegated(two) {
		t.Error("a plain folder was delegated to us")
	}
}

func TestCgroupsThatNobodyUsesAreRemoved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	gone, young, used := filepath.Join(dir, groupPrefix+"1-1"), filepath.Join(dir, groupPrefix+"1-2"), filepath.Join(dir, groupPrefix+"1-3")
	old := time.Now().Add(-2 * sweepAge)
	err := errors.Join(os.Mkdir(gone, 0o700), os.Mkdir(young, 0o700), os.MkdirAll(filepath.Join(used, "a process"), 0o700),
		os.Chtimes(gone, old, old), os.Chtimes(used, old, old))
	if err != nil {
		t.Fatal(err)
	}
	(&taskLimit{dir: dir}).sweep()
	if _, err := os.Stat(gone); !os.IsNotExist(err) {
		t.Errorf("the old one: %v", err)
	}
	for _, d := range []string{young, used} {
		if _, err := os.Stat(d); err != nil {
			t.Errorf("one that is or will be in use: %v", err)
		}
	}
}

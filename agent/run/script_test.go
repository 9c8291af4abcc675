package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func sh(dir, script string, env ...string) Program {
	return Program{Args: []string{"/bin/sh", "-c", script}, Dir: dir, Env: env}
}

func TestAScriptSeesOnlyWhatItIsGiven(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := starter().Script(t.Context(), sh(dir, `env; pwd; umask; ulimit -n; ulimit -c; cat; grep NoNewPrivs /proc/self/status`, "KERNEX_VERSION=1.0.0"), time.Minute)
	if o.Code != 0 || o.Reason != "" {
		t.Fatalf("%+v", o)
	}
	for _, want := range []string{"KERNEX_VERSION=1.0.0\n", "PATH=" + fixedPath + "\n", dir + "\n", "0077\n1024\n0\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(o.Output, want) {
			t.Errorf("output lacks %q:\n%s", want, o.Output)
		}
	}
	if strings.Contains(o.Output, "HOME=") {
		t.Errorf("the agent's environment leaks:\n%s", o.Output)
	}
}

func TestAScriptsEndIsReportedInWords(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]struct {
		code   int
		reason string
	}{
		"exit 0":        {0, ""},
		"exit 3":        {3, "exit status 3"},
		"exit 75":       {75, "exit status 75"},
		"kill -SEGV $$": {139, "killed by signal segmentation fault"},
	} {
		o := starter().Script(t.Context(), sh(t.TempDir(), script), time.Minute)
		if o.Code != want.code || !strings.HasSuffix(o.Reason, want.reason) || (want.reason == "") != (o.Reason == "") {
			t.Errorf("%s: %+v", script, o)
		}
	}
	if o := starter().Script(t.Context(), Program{Args: []string{"./none"}, Dir: t.TempDir()}, time.Minute); o.Code != shimFailed || !strings.Contains(o.Output, "./none") {
		t.Errorf("a missing script: %+v", o)
	}
}

func TestNothingThatAScriptStartsOutlivesItsLimit(t *testing.T) {
	t.Parallel()
	s := starter()
	if !s.Namespaced() {
		t.Log("no PID namespaces here: setsid children may escape a kill; checked for the group only")
	}
	dir := t.TempDir()
	script := `sleep 1000 & echo "$!" > child; exec sleep 1000`
	if s.Namespaced() {
		script = `setsid sh -c 'trap "" TERM HUP; touch ready; while :; do sleep 0.02; date +%N > beat; done' >/dev/null 2>&1 & ` + script
	}
	o := s.Script(t.Context(), sh(dir, script), 700*time.Millisecond)
	if !o.TimedOut || !strings.Contains(o.Reason, "killed after its limit of 700ms") {
		t.Fatalf("%+v", o)
	}
	if !s.Namespaced() {
		return
	}
	if _, err := os.Stat(filepath.Join(dir, "ready")); err != nil {
		t.Fatal("the daemon never ran")
	}
	before, _ := os.ReadFile(filepath.Join(dir, "beat"))
	wait := time.NewTimer(200 * time.Millisecond)
	<-wait.C
	after, _ := os.ReadFile(filepath.Join(dir, "beat"))
	if string(before) != string(after) {
		t.Fatal("a daemon of the script goes on after the script was killed")
	}
}

func TestWhatAScriptLeavesRunningDiesWithIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := starter().Script(t.Context(), sh(dir, `setsid sh -c 'while :; do sleep 0.02; date +%N > beat; done' >/dev/null 2>&1 & while [ ! -s beat ]; do sleep 0.01; done`), time.Minute)
	if o.Reason != "" {
		t.Fatalf("%+v", o)
	}
	before, _ := os.ReadFile(filepath.Join(dir, "beat"))
	wait := time.NewTimer(200 * time.Millisecond)
	<-wait.C
	after, _ := os.ReadFile(filepath.Join(dir, "beat"))
	if string(before) != string(after) {
		t.Fatal("it goes on")
	}
}

func TestAScriptIsKilledWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	dir := t.TempDir()
	go func() {
		waitFor(t, "the script to run", func() bool { _, err := os.Stat(filepath.Join(dir, "on")); return err == nil })
		cancel(errors.New("the operator cancelled"))
	}()
	o := starter().Script(ctx, sh(dir, "touch on; sleep 1000"), time.Minute)
	if o.Code != -1 || o.TimedOut || !strings.Contains(o.Reason, "the operator cancelled") {
		t.Fatalf("%+v", o)
	}
}

func TestOutputKeepsItsStartAndItsEnd(t *testing.T) {
	t.Parallel()
	o := starter().Script(t.Context(), sh(t.TempDir(), `echo first; i=0; while [ $i -lt 4000 ]; do printf '%0100d' $i; i=$((i+1)); done; echo last >&2`), time.Minute)
	if len(o.Output) > headBytes+tailBytes+100 || !strings.HasPrefix(o.Output, "first\n") || !strings.HasSuffix(o.Output, "last\n") || !strings.Contains(o.Output, "bytes left out]") {
		t.Fatalf("%d bytes: %.80q ... %q", len(o.Output), o.Output, o.Output[len(o.Output)-80:])
	}
}

func TestOutputOfAnyWritesIsHeadPlusTail(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const head, tail = 5, 7
		o := newOutput(head, tail)
		all := ""
		for _, p := range rapid.SliceOf(rapid.StringMatching(`[a-z]{0,12}`)).Draw(t, "writes") {
			_, _ = o.Write([]byte(p))
			all += p
		}
		want := all
		if len(all) > head+tail {
			want = fmt.Sprintf("%s\n[%d bytes left out]\n%s", all[:head], len(all)-head-tail, all[len(all)-tail:])
		}
		if got := o.String(); got != want {
			t.Fatalf("%q became %q, want %q", all, got, want)
		}
	})
}

// waitFor waits until ok, looking every few milliseconds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Errorf("waited in vain for %s", what)
			return
		case <-tick.C:
		}
	}
}

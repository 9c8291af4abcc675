package run

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kernexhq/kernex/pkg/bundle"
)

// notes is a Log in memory.
type notes struct {
	mu    sync.Mutex
	text  strings.Builder
	notes []string
}

func (n *notes) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.Write(p)
}

func (n *notes) Note(level, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notes = append(n.notes, level+" "+text)
}

func (n *notes) all() (text string, noted []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.String(), slices.Clone(n.notes)
}

func service(dir, script string, policy bundle.Run) Service {
	return Service{Program: sh(dir, script), Policy: policy, Log: &notes{}}
}

func TestTheProgramIsRestartedUntilItsLimitAndThenGivenUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := NewSupervisor(starter(), func() {})
	defer s.Stop()
	svc := service(dir, "echo run >> runs; echo boom >&2; exit 4", bundle.Run{Restart: bundle.RestartAlways, MaxRestarts: 2})
	if err := s.Start(svc); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the supervisor to give up", func() bool { return s.Status().GaveUp })
	st := s.Status()
	if st.Running || !st.Wanted || !strings.Contains(st.Reason, "exit status 4, after 2 restarts") || st.Output != "boom\n" {
		t.Errorf("%+v", st)
	}
	if runs, _ := os.ReadFile(filepath.Join(dir, "runs")); string(runs) != "run\nrun\nrun\n" {
		t.Errorf("it ran: %q", runs)
	}
	text, noted := svc.Log.(*notes).all()
	if text != "boom\nboom\nboom\n" || len(noted) != 6 || !strings.HasPrefix(noted[0], "info started ") || !strings.HasSuffix(noted[5], "exit status 4, after 2 restarts; it is not started again") {
		t.Errorf("its log: %q, notes %q", text, noted)
	}
}

func TestAProgramThatMayEndIsNotGivenUp(t *testing.T) {
	t.Parallel()
	s := NewSupervisor(starter(), func() {})
	defer s.Stop()
	if err := s.Start(service(t.TempDir(), "exit 0", bundle.Run{Restart: bundle.RestartOnFailure, MaxRestarts: 2})); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its end", func() bool { return !s.Status().Running })
	if st := s.Status(); st.GaveUp || st.Wanted {
		t.Errorf("%+v", st)
	}
}

func TestStopAsksFirstAndThenKills(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		script string
		asked  bool
	}{
		"polite":   {`trap 'touch asked; exit 0' TERM; touch on; while :; do sleep 0.01; done`, true},
		"stubborn": {`trap '' TERM; touch on; while :; do sleep 0.01; done`, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := NewSupervisor(starter(), func() {})
			if err := s.Start(service(dir, tc.script, bundle.Run{Restart: bundle.RestartAlways, MaxRestarts: 5, StopTimeoutS: 1})); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "it to run", func() bool { _, err := os.Stat(filepath.Join(dir, "on")); return err == nil })
			s.Stop()
			s.Stop()
			if _, err := os.Stat(filepath.Join(dir, "asked")); (err == nil) != tc.asked {
				t.Errorf("asked: %v", err)
			}
			if st := s.Status(); st != (Status{}) {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestARestartStartsTheProgramAnewAlsoOneThatWasGivenUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := NewSupervisor(starter(), func() {})
	defer s.Stop()
	if err := s.Restart(); err == nil {
		t.Error("a restart of nothing succeeded")
	}
	runs := func(n int) func() bool {
		return func() bool {
			text, _ := os.ReadFile(filepath.Join(dir, "runs"))
			return strings.Count(string(text), "run") == n
		}
	}
	script := `echo run >> runs; [ -e broken ] && exit 3; exec sleep 1000`
	if err := s.Start(service(dir, script, bundle.Run{Restart: bundle.RestartOnFailure, MaxRestarts: 0, StopTimeoutS: 1})); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the first run", runs(1))
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the second run", runs(2))
	if err := os.WriteFile(filepath.Join(dir, "broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it to be given up", func() bool { return runs(3)() && s.Status().GaveUp })
	if err := os.Remove(filepath.Join(dir, "broken")); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it to run again", func() bool { st := s.Status(); return runs(4)() && st.Running && !st.GaveUp && st.Restarts == 0 })
}

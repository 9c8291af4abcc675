package run

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/bundle"
)

func service(dir, script string, policy bundle.Run) Service {
	return Service{Program: sh(dir, script), Policy: policy, Log: filepath.Join(dir, "run.log")}
}

func TestTheProgramIsRestartedUntilItsLimitAndThenGivenUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := NewSupervisor(starter(), func() {})
	defer s.Stop()
	if err := s.Start(service(dir, "echo run >> runs; echo boom >&2; exit 4", bundle.Run{Restart: bundle.RestartAlways, MaxRestarts: 2})); err != nil {
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
	if log, _ := os.ReadFile(filepath.Join(dir, "run.log")); string(log) != "boom\nboom\nboom\n" {
		t.Errorf("its log: %q", log)
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

func TestTheLogIsRotated(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "run.log")
	l, err := openLog(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		_, _ = l.Write([]byte(strings.Repeat("x", 30)))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".1"} {
		if info, err := os.Stat(p); err != nil || info.Size() > 100 || info.Size() == 0 {
			t.Errorf("%s: %v %v", p, info, err)
		}
	}
}

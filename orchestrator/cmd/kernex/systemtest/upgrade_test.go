package systemtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// TestTheOldProgramRunsOnTheNewSchema upgrades orchestrators as the guide says:
// today's program migrates, then the oldest one that is in the history works on
// it, alone, beside today's, and is replaced. Its build takes a minute or more,
// so only the long form does it; the schema itself is checked in every run.
func TestTheOldProgramRunsOnTheNewSchema(t *testing.T) {
	t.Parallel()
	if !long() {
		t.Logf("set %s=1 to build and run the oldest orchestrator of the history", longEnv)
		return
	}
	old := os.Getenv(oldEnv)
	if old == "" {
		if old = oldest(t); old == "" {
			return
		}
	}
	if !inOwnNetwork(t, oldEnv+"="+old) {
		return
	}
	l := newLab(t, func(l *lab) {
		cmd := exec.Command(filepath.Join(bin(t), "kernex-orchestrator"), "migrate")
		cmd.Env = append(os.Environ(), "KERNEX_POSTGRES="+l.db.dsn(databaseRole, l.dbName))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("migrate: %v: %s", err, out)
		}
		for _, r := range l.orch {
			r.program = old
		}
	})
	agents := l.agents(2)
	o := &tourOf{t: t, ways: []*system{l.at(0), l.at(1)}, agents: agents, c: l.client}
	o.run()
	for i, r := range l.orch {
		r.stop(syscall.SIGTERM)
		r.program = ""
		r.start()
		l.ready()
		for _, s := range o.ways { // what the tour left runs 1.0.0
			version := []string{"1.1.0", "1.0.0"}[o.calls%2]
			o.calls++
			if out, code := s.kernex("deploy", "--bundle", "edge-inference", "--version", version, "--selector", "fleet=test"); code != 0 {
				t.Fatalf("after orchestrator %d was replaced: deploy %s: exit %d: %s", i+1, version, code, out)
			}
			o.all(version)
		}
	}
	if n := l.db.number(l.dbName, `SELECT count(*) FROM deployments WHERE status = $1`, fleet.DeploymentFailed); n != 1 {
		t.Errorf("%d deployments failed, want that of 2.0.0 only", n)
	}
}

// oldEnv is the oldest orchestrator's program.
const oldEnv = "KERNEX_TEST_OLD_PROGRAM"

// oldest builds the orchestrator of the first commit that has it as a program of
// its own; "" where there is no history that old.
func oldest(t *testing.T) string {
	t.Helper()
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = root(t)
		out, err := cmd.Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	commits := strings.Fields(git("log", "--diff-filter=A", "--format=%H", "--", "orchestrator/cmd/kernex-orchestrator/main.go"))
	if len(commits) == 0 {
		t.Log("no git history here: only the schema is checked")
		return ""
	}
	commit := commits[len(commits)-1]
	if commit == git("rev-parse", "HEAD") {
		t.Log("the history begins today (a shallow clone?): only the schema is checked")
		return ""
	}
	dir := t.TempDir()
	archive := exec.Command("bash", "-euo", "pipefail", "-c", `git archive "$1" | tar -x -C "$2"`, "bash", commit, dir)
	archive.Dir = root(t)
	if out, err := archive.CombinedOutput(); err != nil {
		t.Fatalf("get %s: %v: %s", commit, err, out)
	}
	program := filepath.Join(dir, "old-orchestrator")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", program, "./orchestrator/cmd/kernex-orchestrator")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", commit, err, out)
	}
	t.Logf("the oldest orchestrator is of %s", git("show", "--no-patch", "--format=%h %ad %s", commit))
	return program
}

package main

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestAnAgentEnrolsThroughWhicheverReplicaHearsIt(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a, b := s.replica(), s.replica()
	s.serveBroker(a, b)
	a.awaitReady(http.StatusOK)
	b.awaitReady(http.StatusOK)
	agent := filepath.Join(s.dir, "kernex-agent")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", agent, "../../../agent/cmd/kernex-agent").CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	_, claim, err := s.DB.CreateEnrollmentToken(t.Context(), fleet.NewEnrollmentToken{MaxUses: 1, AutoApprove: true}, fleet.System)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(agent, "--state", filepath.Join(s.dir, "state"), "--broker", s.url, "--enroll-token", claim)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	online := func() bool { return s.query(`SELECT count(*) FROM device_status WHERE online AND state_rev > 0`) == 1 }
	testkit.Eventually(t, 40*time.Second, online)
	// The replica that is left hears its goodbye.
	a.kill()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return !online() })
}

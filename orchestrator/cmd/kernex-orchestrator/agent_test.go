package main

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
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
	cmd := s.agent()
	online := func() bool { return s.query(`SELECT count(*) FROM device_status WHERE online AND state_rev > 0`) == 1 }
	testkit.Eventually(t, 40*time.Second, online)
	// The replica that is left hears its goodbye.
	a.kill()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return !online() })
}

// agent builds and runs a kernex-agent with a claim token until the test ends.
func (s *site) agent() *exec.Cmd {
	t := s.t
	t.Helper()
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
	return cmd
}

func TestTheCommandKeyChangesWithoutEnrollingAnybodyAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.replica()
	s.serveBroker(r)
	r.awaitReady(http.StatusOK)
	s.agent()
	testkit.Eventually(t, 40*time.Second, func() bool {
		return s.query(`SELECT count(*) FROM device_status WHERE online AND command_key <> ''`) == 1
	})
	devices, err := s.DB.Devices(t.Context(), fleet.DeviceFilter{}, fleet.Page{Limit: 1})
	if err != nil || len(devices.Items) != 1 {
		t.Fatalf("%+v, %v", devices, err)
	}
	configure := func(what string) {
		t.Helper()
		c, err := s.DB.DeviceConfig(t.Context(), devices.Items[0].ID, nil)
		if err != nil {
			t.Fatal(err)
		}
		timeout := c.DeployTimeoutS + 1
		if c, err = s.DB.SetDeviceConfig(t.Context(), devices.Items[0].ID, fleet.ConfigPatch{DeployTimeoutS: &timeout}, 0, nil, fleet.System); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, 40*time.Second, func() error {
			if s.query(`SELECT count(*) FROM device_status WHERE config_version = $1 AND config_outcome = 'applied'`, c.Version) != 1 {
				return fmt.Errorf("%s: configuration %d is not applied", what, c.Version)
			}
			return nil
		})
	}
	again := func(flags ...string) string {
		t.Helper()
		at := r.internal
		if code := r.stop(); code != 0 {
			t.Errorf("SIGTERM: exit code %d", code)
		}
		r = s.replica(append([]string{"--internal", at}, flags...)...)
		return r.awaitReady(http.StatusOK)
	}
	configure("the old key")
	again("--next-command-key-file", s.path("next.key"))
	testkit.Eventually(t, 40*time.Second, func() error {
		if _, body := r.get("/readyz"); !strings.Contains(body, "0 devices have not taken the next one") {
			return errors.New(body)
		}
		return nil
	})
	configure("the next key")
	if body := again("--command-key-file", s.path("next.key")); strings.Contains(body, "command key") {
		t.Errorf("/readyz after the change: %s", body)
	}
	configure("the new key alone")
	// A replica that was started with the old key says so.
	if body := again(); !strings.Contains(body, "does not have") {
		t.Errorf("/readyz with the old key: %s", body)
	}
}

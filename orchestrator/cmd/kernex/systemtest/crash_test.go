package systemtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// deployed pushes 1.0.0 and 1.1.0, brings n devices to 1.0.0 and returns them
// with a running deployment of 1.1.0.
func deployed(t *testing.T, s *system, n int) ([]*agent, fleet.Deployment) {
	t.Helper()
	agents := s.agents(n)
	for _, v := range []string{"1.0.0", "1.1.0"} {
		s.must("bundle", "push", filepath.Join(bin(t), v))
	}
	s.must("deploy", "--bundle", "edge-inference", "--version", "1.0.0", "--selector", "fleet=test")
	sel := "fleet=test"
	d, err := s.api.Deploy(t.Context(), client.NewDeployment{Bundle: "edge-inference", BundleVersion: "1.1.0", Selector: &sel})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() error {
		got, err := s.api.Deployment(t.Context(), d.ID)
		if err == nil && got.Status == fleet.DeploymentPending {
			err = fmt.Errorf("deployment is still pending")
		}
		return err
	})
	return agents, d
}

// ends waits for the deployment's end and checks that each target and each
// history row is there once.
func ends(t *testing.T, s *system, d fleet.Deployment, want fleet.DeploymentStatus, agents []*agent) {
	t.Helper()
	testkit.Eventually(t, patience, func() error {
		got, err := s.api.Deployment(context.Background(), d.ID)
		if err == nil && got.Status != want {
			err = fmt.Errorf("deployment is %s (%s), progress %v, want %s", got.Status, got.Reason, got.Progress, want)
		}
		return err
	})
	for _, a := range agents {
		h, err := s.api.History(t.Context(), a.id(), 100)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, e := range h.Items {
			if e.DeploymentID == d.ID {
				n++
			}
		}
		if n != 1 {
			t.Errorf("device %s has %d history rows of %s, want 1", a.id(), n, d.ID)
		}
	}
}

func TestKillingKernexUpInADeploymentLosesNothing(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := startUp(t, dir, nil)
	agents, d := deployed(t, s, 2)
	s.proc.stop(syscall.SIGKILL)
	s = startUp(t, dir, &s.addr)
	ends(t, s, d, fleet.DeploymentSuccess, agents)
	for _, a := range agents {
		serves(t, "1.1.0", a.dir)
	}
}

func TestKillingPostgresInADeploymentLosesNothing(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	s := startUp(t, dir, nil)
	agents, d := deployed(t, s, 2)
	killPostgres(t, dir)
	ends(t, s, d, fleet.DeploymentSuccess, agents)
	for _, a := range agents {
		serves(t, "1.1.0", a.dir)
	}
}

// killPostgres kills the postmaster of a private cluster.
func killPostgres(t *testing.T, dir string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "postgres", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill Postgres: %v", err)
	}
}

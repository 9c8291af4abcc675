package systemtest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// gateBundle is a bundle whose deploy script waits until the test opens the
// device's gate, so that a deployment has a middle for as long as one needs it.
// size is that of a file in it that does not compress.
func gateBundle(t *testing.T, s *system, version string, size int) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), version)
	manifest, err := json.Marshal(map[string]any{
		"schema": 1, "name": "gate", "version": version, "deploy": map[string]any{"script": "deploy.sh", "timeout_s": 300},
	})
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, size)
	_, _ = rand.Read(noise) // never fails
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name string
		text []byte
		mode fs.FileMode
	}{
		{"manifest.json", manifest, 0o644}, {"noise", noise, 0o644},
		{"deploy.sh", []byte("#!/bin/sh\nuntil [ -e \"$KERNEX_STATE_DIR/open-$KERNEX_VERSION\" ]; do sleep 0.1; done\n"), 0o755},
	} {
		if err := os.WriteFile(filepath.Join(dir, f.name), f.text, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	s.must("bundle", "push", dir)
}

// open lets the deploy scripts of a version end.
func open(version string, agents ...*agent) {
	for _, a := range agents {
		a.t.Helper()
		dir := filepath.Join(a.dir, "state")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			a.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "open-"+version), nil, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

// deployGate starts a deployment of the gate to the agents.
func deployGate(t *testing.T, s *system, version string, agents ...*agent) fleet.Deployment {
	t.Helper()
	n := client.NewDeployment{Bundle: "gate", BundleVersion: version}
	for _, a := range agents {
		n.TargetDevices = append(n.TargetDevices, a.id())
	}
	d, err := s.api.Deploy(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// reaches waits until the targets of all these devices are in one of states.
func reaches(t *testing.T, s *system, d fleet.Deployment, agents []*agent, states ...fleet.TargetState) {
	t.Helper()
	want := map[string]bool{}
	for _, a := range agents {
		want[a.id()] = true
	}
	testkit.Eventually(t, patience, func() error {
		got, err := s.api.Targets(context.Background(), d.ID, "", 0)
		if err != nil {
			return err
		}
		var errs []error
		for _, target := range got.Items {
			in := !want[target.DeviceID]
			for _, st := range states {
				in = in || target.State == st
			}
			if !in {
				errs = append(errs, fmt.Errorf("%s is %s, want %v", target.DeviceID, target.State, states))
			}
		}
		return errors.Join(errs...)
	})
}

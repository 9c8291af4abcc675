package systemtest

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// TestARestoredBackupCommandsNothingBackwards brings back a backup from before
// the last deployments, for a fleet that is ahead of it: a device that took a
// release and configurations which the backup does not know, one in the middle
// of a deployment that it does not know, and one whose deployment was open then.
func TestARestoredBackupCommandsNothingBackwards(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	l := newLab(t)
	s := l.at(0)
	w := l.listen()
	agents := l.agents(3)
	ahead, busy, halfway := agents[0], agents[1], agents[2]
	for _, v := range []string{"1.0.0", "1.1.0"} {
		s.must("bundle", "push", filepath.Join(bin(t), v))
	}
	s.must("deploy", "--bundle", "edge-inference", "--version", "1.0.0", "--selector", "fleet=test")
	for _, a := range agents { // or a minute passes until a device is asked for its state
		configure(t, s, a, 5, 2)
	}
	gateBundle(t, s, "1.0.0", 64)
	known := deployGate(t, s, "1.0.0", halfway)
	reaches(t, s, known, []*agent{halfway}, fleet.TargetInstalling)

	dump := l.path("kernex.dump")
	l.db.tool("pg_dump", "--format=custom", "--file="+dump, "kernex")

	open("1.0.0", halfway)
	ends(t, s, known, fleet.DeploymentSuccess, []*agent{halfway})
	s.must("deploy", "--bundle", "edge-inference", "--version", "1.1.0", "--device", ahead.id())
	configure(t, s, ahead, 6, 3)
	configure(t, s, ahead, 7, 4)
	gateBundle(t, s, "2.0.0", 64)
	lost := deployGate(t, s, "2.0.0", busy)
	reaches(t, s, lost, []*agent{busy}, fleet.TargetInstalling)

	for _, r := range l.orch {
		r.kill()
	}
	before := w.commands()
	open("2.0.0", busy)
	l.db.tool("createdb", "--owner="+databaseRole, "restored")
	l.db.tool("pg_restore", "--no-owner", "--role="+databaseRole, "--exit-on-error", "--dbname=restored", dump)
	l.dbName = "restored"
	for _, r := range l.orch {
		r.start()
	}
	l.ready()

	// Devices tell what they run; what was open goes on; a result that nobody
	// knows is refused, and the device stops sending it.
	online(t, s.api, 3)
	for a, want := range map[*agent]string{ahead: "edge-inference 1.1.0", busy: "gate 2.0.0", halfway: "gate 1.0.0"} {
		testkit.Eventually(t, patience, func() error {
			d, err := s.api.Device(context.Background(), a.id())
			if got := d.BundleName + " " + d.BundleVersion; err == nil && got != want {
				err = fmt.Errorf("%s runs %s, want %s", a.id(), got, want)
			}
			return err
		})
	}
	ends(t, s, known, fleet.DeploymentSuccess, []*agent{halfway})
	testkit.Eventually(t, patience, func() bool { return w.refused(busy.id(), fleet.CodeUnknownCommand) })
	if d, err := s.api.Device(t.Context(), ahead.id()); err != nil || d.ConfigVersion != 2 || d.ConfigReported != 4 {
		t.Errorf("configuration %d, reported %d, %v, want 2 and 4", d.ConfigVersion, d.ConfigReported, err)
	}

	// What is asked for now is obeyed.
	s.must("deploy", "--bundle", "edge-inference", "--version", "1.0.0", "--selector", "fleet=test")
	runs(t, s.api, "1.0.0", 3)
	configure(t, s, ahead, 8, 5)

	highest := map[string]int64{}
	sent := map[string]bool{}
	for _, c := range before {
		highest[c.Device], sent[c.ID] = max(highest[c.Device], c.Seq), true
	}
	news := map[protocol.CommandType]map[string]bool{}
	for _, c := range w.commands()[len(before):] {
		if sent[c.ID] && c.Device == halfway.id() {
			continue // the one that was open
		}
		if news[c.Type] == nil {
			news[c.Type] = map[string]bool{}
		}
		news[c.Type][c.ID] = true
		if c.Seq <= highest[c.Device] {
			t.Errorf("%s of %s has seq %d, the device has seen %d", c.Type, c.Device, c.Seq, highest[c.Device])
		}
	}
	if len(news) != 2 || len(news[protocol.CommandDeploy]) != 3 || len(news[protocol.CommandConfigure]) != 1 {
		t.Errorf("commands after the restore: %v, want those of one deployment and one configuration", news)
	}
}

// configure changes a device's heartbeat interval and waits until it has it, as
// the version.
func configure(t *testing.T, s *system, a *agent, interval int, version int64) {
	t.Helper()
	s.must("device", "config", "set", a.id(), "--heartbeat-interval", strconv.Itoa(interval))
	testkit.Eventually(t, patience, func() error {
		d, err := s.api.Device(context.Background(), a.id())
		if err == nil && (d.ConfigVersion != version || d.ConfigReported != version || d.ConfigOutcome != "applied") {
			err = fmt.Errorf("configuration %d, reported %d, %s, want %d", d.ConfigVersion, d.ConfigReported, d.ConfigOutcome, version)
		}
		return err
	})
}

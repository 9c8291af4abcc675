package systemtest

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	_ "github.com/lib/pq" // the driver

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// hourLater makes the database look as an hour later: every stored time is
// moved back. Nothing else tells a database how late it is.
var hourLater = []string{
	`UPDATE settings SET value = jsonb_build_object('at', (value->>'at')::timestamptz - interval '1 hour', 'since', (value->>'since')::timestamptz - interval '1 hour') WHERE name = 'engine_tick'`,
	`UPDATE deployments SET deadline = deadline - interval '1 hour', created_at = created_at - interval '1 hour', started_at = started_at - interval '1 hour'`,
	`UPDATE deployment_targets SET deadline = deadline - interval '1 hour', offered_at = offered_at - interval '1 hour', accepted_at = accepted_at - interval '1 hour', updated_at = updated_at - interval '1 hour'`,
	`UPDATE commands SET not_after = not_after - interval '1 hour', next_send_at = next_send_at - interval '1 hour', issued_at = issued_at - interval '1 hour', received_at = received_at - interval '1 hour'`,
	`UPDATE device_status SET last_seen = last_seen - interval '1 hour', last_heartbeat = last_heartbeat - interval '1 hour'`,
}

// TestAnOutageOfAnHourTimesNothingOut stops everything in the middle of a
// deployment whose steps may take 360 s and goes on an hour later.
func TestAnOutageOfAnHourTimesNothingOut(t *testing.T) {
	t.Parallel()
	dsn := testkit.Postgres(t)
	dir := dataDir(t)
	s := startUp(t, dir, nil, "--postgres", dsn)
	a := s.agents(1)[0]
	s.must("bundle", "push", filepath.Join(bin(t), "1.0.0"))
	d, err := s.api.Deploy(t.Context(), client.NewDeployment{Bundle: "edge-inference", BundleVersion: "1.0.0", TargetDevices: []string{a.id()}})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() error {
		got, err := s.api.Targets(t.Context(), d.ID, "", 1)
		if err == nil && (len(got.Items) != 1 || !got.Items[0].State.Active()) {
			err = fmt.Errorf("targets %+v, want the device to have accepted", got.Items)
		}
		return err
	})
	a.stop(syscall.SIGKILL) // mid-way, or it would end by itself
	s.proc.stop(syscall.SIGKILL)

	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, q := range hourLater {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}

	s = startUp(t, dir, &s.addr, "--postgres", dsn)
	a = startAgent(t, a.dir, s.addr.MQTT, "")
	ends(t, s, d, fleet.DeploymentSuccess, []*agent{a})
	serves(t, "1.0.0", a.dir)
}

package postgres_test

import (
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func begin(t testing.TB, s *looptest.Scene) *sql.Tx {
	t.Helper()
	db, err := sql.Open("postgres", s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func awaitLock(t testing.TB, s *looptest.Scene) {
	t.Helper()
	testkit.Eventually(t, 10*time.Second, func() bool {
		return value[bool](t, s, `SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`)
	})
}

func TestResultsWaitForTheHeartbeatsOfTheirDevicesBeforeTheyLockACommand(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a, b := s.Online(), s.Online()
	_, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a, b)
	tx := begin(t, s) // a flush that has both devices' rows
	if _, err := tx.ExecContext(t.Context(), `UPDATE device_status SET seq = seq + 1`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.DB.ApplyResults(t.Context(), []string{b, a}, []protocol.Result{succeeded(cmds[b].ID), {Command: cmds[a].ID, State: fleet.TargetAccepted}})
		done <- err
	}()
	awaitLock(t, s)
	for _, q := range []string{`SET LOCAL lock_timeout = '100ms'`, `UPDATE commands SET next_send_at = now()`} {
		if _, err := tx.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	if err := errors.Join(tx.Commit(), <-done); err != nil {
		t.Fatal(err)
	}
}

func TestPartitionIsMadeWhileASampleOfItsDayIsWritten(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	tx := begin(t, s)
	if _, err := tx.ExecContext(t.Context(), `INSERT INTO heartbeats (device_id, at, status, uptime_s) VALUES ('x', now(), 'healthy', 1)`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.DB.EnsurePartitions(t.Context(), 0) }()
	awaitLock(t, s)
	if err := errors.Join(tx.Commit(), <-done); err != nil {
		t.Fatal(err)
	}
	if n := value[int](t, s, `SELECT count(*) FROM heartbeats_default`); n != 0 {
		t.Fatalf("%d samples stayed behind", n)
	}
}

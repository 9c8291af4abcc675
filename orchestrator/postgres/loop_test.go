package postgres_test

import (
	"database/sql"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/orchestrator/rollout"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// run executes SQL that no method of the store would.
func run(t testing.TB, s *looptest.Scene, q string, args ...any) {
	t.Helper()
	db, err := sql.Open("postgres", s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), q, args...); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
}

// value reads one value.
func value[T any](t testing.TB, s *looptest.Scene, q string, args ...any) T {
	t.Helper()
	db, err := sql.Open("postgres", s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var v T
	if err := db.QueryRowContext(t.Context(), q, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return v
}

// step plans until nothing is left to do.
func step(t testing.TB, s *looptest.Scene, grace time.Duration) {
	t.Helper()
	var done []string
	for range 100 {
		id, changed, err := s.DB.Step(t.Context(), grace, false, done, rollout.Plan)
		if err != nil {
			t.Fatal(err)
		}
		if id == "" {
			return
		}
		if !changed {
			done = append(done, id)
		}
	}
	t.Fatal("planning does not come to rest")
}

// claim returns the commands that are due, by device.
func claim(t testing.TB, s *looptest.Scene) map[string]fleet.Command {
	t.Helper()
	list, err := s.DB.ClaimCommands(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]fleet.Command{}
	for _, c := range list {
		if _, twice := out[c.DeviceID]; twice {
			t.Fatalf("two commands for %s", c.DeviceID)
		}
		out[c.DeviceID] = c
	}
	return out
}

// offered deploys b to devices and returns the deployment and its commands.
func offered(t testing.TB, s *looptest.Scene, b fleet.Bundle, devices ...string) (string, map[string]fleet.Command) {
	t.Helper()
	dep := s.Deploy(b, devices...)
	step(t, s, 0)
	return dep, claim(t, s)
}

func succeeded(command string) protocol.Result {
	return protocol.Result{Command: command, State: fleet.TargetSucceeded, DurationMS: 1500}
}

func failed(command string, state fleet.TargetState, code fleet.Code, message string) protocol.Result {
	return protocol.Result{Command: command, State: state, Error: &protocol.ErrorDetail{Code: code, Message: message}}
}

func accepted(t testing.TB, a *protocol.ResultAck) {
	t.Helper()
	if a == nil || !a.Accepted || a.Code != "" {
		t.Fatalf("ack is %+v, want accepted", a)
	}
}

func refused(t testing.TB, a *protocol.ResultAck, code fleet.Code) {
	t.Helper()
	if a == nil || a.Accepted || a.Code != code {
		t.Fatalf("ack is %+v, want %s", a, code)
	}
}

func history(t testing.TB, s *looptest.Scene, device string) []fleet.HistoryEntry {
	t.Helper()
	list, err := s.DB.History(t.Context(), device, nil, fleet.Page{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func device(t testing.TB, s *looptest.Scene, id string) fleet.Device {
	t.Helper()
	d, err := s.DB.Device(t.Context(), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

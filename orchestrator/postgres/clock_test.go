package postgres_test

import (
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
)

const since = `SELECT extract(epoch FROM now() - (value->>'since')::timestamptz)::float8 FROM settings WHERE name = 'engine_tick'`

func tick(t testing.TB, s *looptest.Scene, start bool) {
	t.Helper()
	if _, err := s.DB.Tick(t.Context(), start); err != nil {
		t.Fatal(err)
	}
}

func TestTickOfAnotherReplicaAMomentAheadIsNoClockThatWasSetBack(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	tick(t, s, true)
	run(t, s, `UPDATE settings SET value = jsonb_build_object('at', now() + interval '1 second', 'since', now() - interval '1 hour') WHERE name = 'engine_tick'`)
	tick(t, s, false)
	if age := value[float64](t, s, since); age < 3000 {
		t.Fatalf("the grace began anew %.1f s ago: nothing would ever expire", age)
	}
}

func TestClockThatWasSetBackHoldsUpNoDeliveryAndNoLease(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	tick(t, s, true)
	a := s.Online()
	_, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	if _, ok, err := s.DB.AcquireLease(t.Context(), "events", "gone", time.Minute); !ok || err != nil {
		t.Fatal(ok, err)
	}
	run(t, s, `UPDATE settings SET value = jsonb_build_object('at', now() + interval '1 hour', 'since', now() - interval '1 hour') WHERE name = 'engine_tick'`)
	run(t, s, `UPDATE commands SET next_send_at = now() + interval '1 hour'`)
	run(t, s, `UPDATE leases SET until = now() + interval '1 hour'`)
	tick(t, s, false)
	if again := claim(t, s); again[a].ID != cmds[a].ID {
		t.Fatalf("claimed %+v", again)
	}
	if _, ok, err := s.DB.AcquireLease(t.Context(), "events", "other", time.Minute); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if age := value[float64](t, s, since); age > 60 {
		t.Fatalf("the grace began %.0f s ago", age)
	}
}

package postgres_test

import (
	"cmp"
	"math"
	"slices"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
)

func report(t testing.TB, s *looptest.Scene, id string, session, highest int64) {
	t.Helper()
	st := looptest.State(session)
	st.HighestSeq = highest
	if err := st.Validate(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DB.ApplyState(t.Context(), id, st, looptest.Allow); err != nil {
		t.Fatal(err)
	}
}

func TestDeviceThatHasSeenEverySeqHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	good, bad := s.Online(), s.Device()
	report(t, s, bad, 1, math.MaxInt64)
	if _, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), good, bad); len(cmds) != 2 {
		t.Fatalf("commands are %+v", cmds)
	}
}

func TestCommandMadeBeforeTheDeviceToldItsHighestSeqIsAboveIt(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Device()
	dep, _ := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	interval := 9
	if _, err := s.DB.SetDeviceConfig(t.Context(), a, fleet.ConfigPatch{HeartbeatIntervalS: &interval}, 0, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	report(t, s, a, 1, 40) // the database was restored: it is older than the device
	list, err := s.DB.ClaimCommands(t.Context(), 10)
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	slices.SortFunc(list, func(x, y fleet.Command) int { return cmp.Compare(x.Seq, y.Seq) })
	for i, c := range list {
		if c.Seq != int64(41+i) || c.ClosedThrough != 40 {
			t.Fatalf("command %d is %+v", i, c)
		}
	}
	report(t, s, a, 2, 42) // what was sent keeps its seq
	if again := value[int64](t, s, `SELECT min(seq) FROM commands WHERE status = 'open'`); again != 41 {
		t.Fatalf("seq is %d", again)
	}
	if next := value[int64](t, s, `SELECT next_seq FROM devices WHERE id = $1`, a); next != 43 {
		t.Fatalf("the next seq of %s is %d", dep, next)
	}
}

func TestConfigWhoseCommandWasTooOldIsSentAgain(t *testing.T) {
	t.Parallel()
	for _, code := range []fleet.Code{fleet.CodeStaleSeq, fleet.CodeExpired} {
		t.Run(string(code), func(t *testing.T) {
			t.Parallel()
			s := looptest.Open(t)
			a := s.Online()
			interval := 9
			if _, err := s.DB.SetDeviceConfig(t.Context(), a, fleet.ConfigPatch{HeartbeatIntervalS: &interval}, 0, nil, fleet.System); err != nil {
				t.Fatal(err)
			}
			first := claim(t, s)[a]
			accepted(t, s.Report(a, failed(first.ID, fleet.TargetRejected, code, "too old")))
			report(t, s, a, 2, 40)
			if c := claim(t, s)[a]; c.Type != "configure" || c.ID == first.ID || c.Seq != 41 {
				t.Fatalf("command is %+v", c)
			}
		})
	}
}

func TestConfigOfARestoredDatabaseIsAboveTheDevices(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ reported, want int64 }{{5, 6}, {1, 2}, {math.MaxInt64, 2}} {
		s := looptest.Open(t)
		a := s.Device()
		st := looptest.State(1)
		st.ConfigVersion, st.ConfigOutcome = tc.reported, "applied" // the database knows of version 1 only
		if _, err := s.DB.ApplyState(t.Context(), a, st, looptest.Allow); err != nil {
			t.Fatal(err)
		}
		interval := 9
		c, err := s.DB.SetDeviceConfig(t.Context(), a, fleet.ConfigPatch{HeartbeatIntervalS: &interval}, 0, nil, fleet.System)
		if err != nil || c.Version != tc.want {
			t.Errorf("the device has %d, the next version is %d, %v, want %d", tc.reported, c.Version, err, tc.want)
		}
	}
}

package postgres_test

import (
	"testing"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// reportFrom stores the full report of a session from a boot.
func reportFrom(t *testing.T, s *looptest.Scene, id string, session int64, boot string) fleet.StateOutcome {
	t.Helper()
	r := looptest.State(session)
	r.Boot = boot
	out, err := s.DB.ApplyState(t.Context(), id, r, looptest.Allow)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func statusOf(t *testing.T, s *looptest.Scene, id string) string {
	t.Helper()
	d, err := s.DB.Device(t.Context(), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d.Status
}

func TestCloneSignsComeFromBirths(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	for name, c := range map[string]struct {
		session int64
		boot    string
		old     bool // the stored session began long ago
		sign    bool
	}{
		"the same birth again":                {7, "boot-1", false, false},
		"the same session from another boot":  {7, "other", false, true},
		"the same session without a boot":     {7, "", false, true},
		"an older session from another boot":  {6, "other", false, true},
		"a report that a newer one overtook":  {6, "boot-1", false, false},
		"an older session of the same boot":   {6, "boot-1", true, true},
		"a newer session of the same boot":    {8, "boot-1", true, false},
		"a newer session after a reboot":      {8, "other", true, false},
		"a report of the session, much later": {7, "boot-1", true, false},
	} {
		id := s.Device()
		s.Birth(id, 7)
		if c.old {
			run(t, s, `UPDATE device_status SET session_at = now() - interval '2 minutes' WHERE device_id = $1`, id)
		}
		if out := reportFrom(t, s, id, c.session, c.boot); out.CloneSign != c.sign || out.Quarantined {
			t.Errorf("%s: %+v", name, out)
		}
	}
}

func TestADeviceWithoutABootIDIsNoCloneOfItself(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	id := s.Device()
	for range 3 {
		if out := reportFrom(t, s, id, 1, ""); out.CloneSign || out.Stale {
			t.Errorf("%+v", out)
		}
	}
}

func TestTheSecondCloneSignWithinADayQuarantines(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	id := s.Device()
	s.Birth(id, 7)
	epoch := value[int](t, s, `SELECT auth_epoch FROM devices WHERE id = $1`, id)
	for range 3 { // one birth, however often it reports
		if out := reportFrom(t, s, id, 7, "copy"); !out.CloneSign || out.Quarantined {
			t.Fatalf("first sign: %+v", out)
		}
	}
	if out := reportFrom(t, s, id, 8, "copy"); out.CloneSign || statusOf(t, s, id) != "online" {
		t.Fatalf("the copy's next session is newer: %+v, %s", out, statusOf(t, s, id))
	}
	if out := reportFrom(t, s, id, 8, "boot-1"); !out.CloneSign || !out.Quarantined {
		t.Fatalf("second sign: %+v", out)
	}
	if got := statusOf(t, s, id); got != "quarantined" {
		t.Errorf("the device is %s", got)
	}
	if out := reportFrom(t, s, id, 9, "boot-1"); !out.Refused {
		t.Errorf("a report in quarantine: %+v", out)
	}
	for q, want := range map[string]int{
		`SELECT auth_epoch FROM devices WHERE id = $1`: epoch + 1,
		`SELECT count(*) FROM audit WHERE subject = $1 AND actor = 'system' AND action = 'device.quarantine' AND after->>'reason' = 'clone'`:             1,
		`SELECT count(*) FROM events WHERE device_id = $1 AND type = 'kernex.device.credential' AND data->>'status' = 'quarantined' AND data ? 'reason'`: 1,
	} {
		if n := value[int](t, s, q, id); n != want {
			t.Errorf("%s: %d, want %d", q, n, want)
		}
	}

	if _, err := s.DB.SetCredential(t.Context(), id, fleet.CredentialQuarantined, fleet.CredentialActive, nil, fleet.Actor{Name: "operator"}); err != nil {
		t.Fatal(err)
	}
	if out := reportFrom(t, s, id, 3, "restored"); !out.Birth || out.CloneSign || out.Stale {
		t.Errorf("after the release whoever comes is the device: %+v", out)
	}
	if out := reportFrom(t, s, id, 3, "copy"); !out.CloneSign || out.Quarantined {
		t.Errorf("after the release signs count from nothing: %+v", out)
	}
}

func TestCloneSignsADayApartAreNoQuarantine(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	id := s.Device()
	s.Birth(id, 7)
	reportFrom(t, s, id, 7, "copy")
	run(t, s, `UPDATE device_status SET clone_sign_at = now() - interval '25 hours' WHERE device_id = $1`, id)
	if out := reportFrom(t, s, id, 6, "copy"); !out.CloneSign || out.Quarantined {
		t.Errorf("%+v", out)
	}
	if out := reportFrom(t, s, id, 5, "copy"); !out.Quarantined {
		t.Errorf("and then another: %+v", out)
	}
}

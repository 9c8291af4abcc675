package postgres_test

import (
	"testing"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
)

func TestRevokedDeviceIsOfflineAtOnce(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a, away := s.Online(), s.Device()
	for _, id := range []string{a, away} {
		if _, err := s.DB.SetCredential(t.Context(), id, "", fleet.CredentialRevoked, nil, fleet.System); err != nil {
			t.Fatal(err)
		}
		list, err := s.DB.FleetDevices(t.Context(), []string{id})
		if err != nil || len(list) != 1 || list[0].Online || list[0].Status != "revoked" {
			t.Fatalf("the fleet sees %+v, %v", list, err)
		}
	}
	flush(t, s, fleet.Beat{DeviceID: a, Session: 1, Seq: 99}) // was on its way
	if value[bool](t, s, `SELECT bool_or(online) FROM device_status`) {
		t.Fatal("a heartbeat brought a revoked device back")
	}
	if n, m := events(t, s, a, fleet.EventDeviceOffline), events(t, s, away, fleet.EventDeviceOffline); n != 1 || m != 0 {
		t.Fatalf("%d and %d events, want one for the device that was online", n, m)
	}
}

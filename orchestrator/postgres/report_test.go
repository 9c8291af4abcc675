package postgres_test

import (
	"fmt"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func flush(t testing.TB, s *looptest.Scene, beats ...fleet.Beat) (wantState []string) {
	t.Helper()
	want, err := s.DB.FlushBeats(t.Context(), beats, looptest.Allow)
	if err != nil {
		t.Fatal(err)
	}
	return want
}

func metric(v float64) *float64 { return &v }

func events(t testing.TB, s *looptest.Scene, device, typ string) int {
	t.Helper()
	return value[int](t, s, `SELECT count(*) FROM events WHERE device_id = $1 AND type = $2`, device, typ)
}

func TestHeartbeatIsRecorded(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	want := flush(t, s, fleet.Beat{DeviceID: a, Session: 1, Seq: 1, StateRev: 1, Status: "degraded", UptimeS: 77, CPUPct: metric(12.5), MemoryMB: metric(300), DiskPct: metric(40)})
	if len(want) != 0 {
		t.Fatalf("state wanted of %v", want)
	}
	d := device(t, s, a)
	if d.Status != "online" || d.Health != "degraded" || d.UptimeS != 77 || *d.CPUPct != 12.5 || d.LastHeartbeat == nil {
		t.Fatalf("device is %+v", d)
	}
	list, err := s.DB.Heartbeats(t.Context(), a, nil, fleet.HeartbeatFilter{Limit: 10})
	if err != nil || len(list) != 1 || *list[0].MemoryMB != 300 || list[0].Status != "degraded" {
		t.Fatalf("samples are %+v, %v", list, err)
	}
	// What a heartbeat leaves out keeps its value; a minute has one sample.
	flush(t, s, fleet.Beat{DeviceID: a, Session: 1, Seq: 2, StateRev: 1, CPUPct: metric(13)})
	d = device(t, s, a)
	if d.Health != "degraded" || *d.CPUPct != 13 || *d.DiskPct != 40 {
		t.Fatalf("device is %+v", d)
	}
	if n := value[int](t, s, `SELECT count(*) FROM heartbeats WHERE at >= date_trunc('minute', now())`); n != 1 {
		t.Fatalf("%d samples in a minute", n)
	}
}

func TestOlderHeartbeatChangesNothing(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	flush(t, s, fleet.Beat{DeviceID: a, Session: 2, Seq: 5, CPUPct: metric(50)})
	for _, b := range []fleet.Beat{{Session: 2, Seq: 5}, {Session: 2, Seq: 4}, {Session: 1, Seq: 99}} {
		b.DeviceID, b.CPUPct = a, metric(1)
		flush(t, s, b)
		if d := device(t, s, a); *d.CPUPct != 50 {
			t.Fatalf("%+v overwrote a newer heartbeat", b)
		}
	}
}

func TestHeartbeatWithAnotherStateRevAsksForTheState(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	if want := flush(t, s, fleet.Beat{DeviceID: a, Session: 1, Seq: 1, StateRev: 2}); len(want) != 1 || want[0] != a {
		t.Fatalf("state wanted of %v", want)
	}
}

func TestPresenceOfTheCurrentSessionOnlyMarksADeviceOffline(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Device()
	s.Birth(a, 5)
	flush(t, s, fleet.Beat{DeviceID: a, Gone: 4})
	if d := device(t, s, a); d.Status != "online" {
		t.Fatalf("device is %s after the will of an older session", d.Status)
	}
	flush(t, s, fleet.Beat{DeviceID: a, Gone: 5})
	if d := device(t, s, a); d.Status != "offline" {
		t.Fatalf("device is %s", d.Status)
	}
	flush(t, s, fleet.Beat{DeviceID: a, Session: 5, Seq: 9}) // was still on its way
	if d := device(t, s, a); d.Status != "offline" {
		t.Fatalf("a heartbeat of a dead session made the device %s", d.Status)
	}
	flush(t, s, fleet.Beat{DeviceID: a, Session: 6, Seq: 1})
	if d := device(t, s, a); d.Status != "online" {
		t.Fatalf("device is %s", d.Status)
	}
	if on, off := events(t, s, a, fleet.EventDeviceOnline), events(t, s, a, fleet.EventDeviceOffline); on != 2 || off != 1 {
		t.Fatalf("%d online and %d offline events", on, off)
	}
}

func TestGoodbyeThatOvertakesItsBirthWins(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Device()
	flush(t, s, fleet.Beat{DeviceID: a, Gone: 1})
	s.Birth(a, 1)
	if d := device(t, s, a); d.Status != "offline" || d.Arch != "amd64" {
		t.Fatalf("device is %+v", d)
	}
}

func TestBirthMakesOpenCommandsDueAgain(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Device()
	_, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	if len(cmds) != 0 {
		t.Fatal("a device that never connected got a command")
	}
	s.Birth(a, 1)
	cmds = claim(t, s)
	s.Report(a, protocol.Result{Command: cmds[a].ID, State: fleet.TargetAccepted})
	run(t, s, `UPDATE commands SET next_send_at = now() WHERE received_at IS NULL`)
	if again := claim(t, s); len(again) != 0 {
		t.Fatalf("sent again although the device has it: %+v", again)
	}
	s.Birth(a, 2)
	if again := claim(t, s); again[a].ID != cmds[a].ID || again[a].Sends != 2 || again[a].Seq != cmds[a].Seq {
		t.Fatalf("after a birth: %+v", again)
	}
	if err := s.DB.CommandsDue(t.Context(), a, cmds[a].ID); err != nil {
		t.Fatal(err)
	}
	if again := claim(t, s); again[a].Sends != 3 {
		t.Fatalf("after a request: %+v", again)
	}
}

func TestHeartbeatMayOvertakeTheBirthOfItsSession(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	flush(t, s, fleet.Beat{DeviceID: a, Session: 2, Seq: 1})
	report := looptest.State(2)
	report.Boot = "boot-2" // it was rebooted
	out, err := s.DB.ApplyState(t.Context(), a, report, looptest.Allow)
	if err != nil || !out.Birth || out.CloneSign {
		t.Fatalf("outcome is %+v, %v", out, err)
	}
}

func TestStateOfADeviceThatIsNotActiveIsRefused(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	if _, err := s.DB.SetCredential(t.Context(), a, "", fleet.CredentialQuarantined, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{a, "nobody"} {
		if out, err := s.DB.ApplyState(t.Context(), id, looptest.State(2), looptest.Allow); err != nil || !out.Refused {
			t.Fatalf("%s: %+v, %v", id, out, err)
		}
	}
	flush(t, s, fleet.Beat{DeviceID: a, Session: 2, Seq: 1, CPUPct: metric(5)})
	if d := device(t, s, a); *d.CPUPct != 5 {
		t.Fatal("the heartbeat of a quarantined device was not recorded")
	}
}

func TestConfigIsDelivered(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	interval := 7
	if _, err := s.DB.SetDeviceConfig(t.Context(), a, fleet.ConfigPatch{HeartbeatIntervalS: &interval}, 0, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	cmd := claim(t, s)[a]
	if cmd.Type != "configure" {
		t.Fatalf("command is %+v", cmd)
	}
	accepted(t, s.Report(a, succeeded(cmd.ID)))
	c, err := s.DB.DeviceConfig(t.Context(), a, nil)
	if err != nil || c.ReportedVersion != 2 || c.Outcome != "applied" || c.HeartbeatIntervalS != 7 {
		t.Fatalf("configuration is %+v, %v", c, err)
	}
	h, err := s.DB.ConfigHistory(t.Context(), a, nil, fleet.Page{Limit: 10})
	if err != nil || h.Items[0].Outcome != "applied" || h.Items[1].Outcome != "" {
		t.Fatalf("history is %+v, %v", h, err)
	}
}

func TestStateBringsALostConfigurationBack(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	interval := 7
	if _, err := s.DB.SetDeviceConfig(t.Context(), a, fleet.ConfigPatch{HeartbeatIntervalS: &interval}, 0, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	run(t, s, `DELETE FROM commands`)
	s.Birth(a, 2)
	cmd := claim(t, s)[a]
	if cmd.Type != "configure" {
		t.Fatalf("command is %+v", cmd)
	}
	// A device that gave up on it is left alone until it changes.
	report := looptest.State(2)
	report.StateRev, report.ConfigVersion, report.ConfigOutcome, report.ConfigError = 2, 2, "reverted", "lost the broker"
	run(t, s, `DELETE FROM commands`)
	if _, err := s.DB.ApplyState(t.Context(), a, report, looptest.Allow); err != nil {
		t.Fatal(err)
	}
	s.Birth(a, 3)
	if again := claim(t, s); len(again) != 0 {
		t.Fatalf("sent again: %+v", again)
	}
}

func TestSilentDevicesGoOffline(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a, b := s.Online(), s.Online()
	if _, err := s.DB.Tick(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	run(t, s, `UPDATE settings SET value = jsonb_set(value, '{since}', to_jsonb(now() - interval '1 hour')) WHERE name = 'engine_tick'`)
	run(t, s, `UPDATE device_status SET last_seen = now() - interval '91 seconds' WHERE device_id = $1`, a)
	run(t, s, `UPDATE device_status SET last_seen = now() - interval '85 seconds' WHERE device_id = $1`, b)
	if n, err := s.DB.SweepOffline(t.Context(), looptest.Allow); err != nil || n != 1 {
		t.Fatalf("%d devices, %v", n, err)
	}
	if device(t, s, a).Status != "offline" || device(t, s, b).Status != "online" || events(t, s, a, fleet.EventDeviceOffline) != 1 {
		t.Fatal("the wrong device is offline")
	}
}

func BenchmarkFlushBeats(b *testing.B) {
	for _, rows := range []int{100, 1000} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			s := looptest.Open(b)
			run(b, s, `INSERT INTO devices (id, public_key, key_hash, key_type, status)
				SELECT 'd' || n, '', sha256(n::text::bytea), 'ed25519', 'active' FROM generate_series(0, 9999) n`)
			run(b, s, `INSERT INTO device_status (device_id) SELECT id FROM devices`)
			run(b, s, `ANALYZE`)
			beats := make([]fleet.Beat, rows)
			n := 0
			b.ResetTimer()
			for b.Loop() {
				for i := range beats {
					id := n % 10000
					beats[i] = fleet.Beat{DeviceID: fmt.Sprintf("d%d", id), Session: 1, Seq: int64(n + 1), Status: "healthy", UptimeS: int64(n), CPUPct: metric(3), MemoryMB: metric(4), DiskPct: metric(5)}
					n++
				}
				flush(b, s, beats...)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "beats/s")
		})
	}
}

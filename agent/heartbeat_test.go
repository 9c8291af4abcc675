package agent_test

import (
	"encoding/json"
	"testing"
)

func TestHeartbeatsSayOnlyWhatIsNewAndNowAndThenEverything(t *testing.T) {
	t.Parallel()
	o := newOrchestrator(t)
	cfg := config(o, t.TempDir())
	// The load of other tests must not change the status.
	cfg.CPUDegraded, cfg.MemoryDegraded, cfg.MemoryError, cfg.DiskDegraded, cfg.DiskError = 0, 0, 0, 0, 0
	d := start(o, cfg)
	o.await("the first state report", func() bool { return len(o.states) > 0 })
	o.configure(d.DeviceID(), 2, 1)
	o.await("eleven heartbeats", func() bool { return len(o.beats) >= 11 })
	o.edit(func() {
		bytes := 0
		for i, h := range o.beats[:11] {
			full := h.AgentVersion != "" && h.Status != "" && h.UptimeS > 0 && h.CPUPct != nil && h.MemoryMB != nil && h.DiskPct != nil
			if want := i%10 == 0; full != want {
				t.Errorf("heartbeat %d: everything %v: %+v", i+1, full, h)
			}
			if i%10 == 0 {
				continue
			}
			if h.AgentVersion != "" || h.Status != "" || h.UptimeS != 0 {
				t.Errorf("heartbeat %d repeats itself: %+v", i+1, h)
			}
			text, err := json.Marshal(h)
			if err != nil {
				t.Fatal(err)
			}
			bytes += len(text)
		}
		if bytes/9 > 85 {
			t.Errorf("%d bytes a heartbeat", bytes/9)
		}
	})
}

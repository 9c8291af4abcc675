package bundle

import (
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

func TestABundleForAnotherDeviceIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	device := Device{Arch: "arm64", Type: "gateway", AgentVersion: "1.2.0"}
	for name, tc := range map[string]struct {
		m    Manifest
		want string // empty: fits
	}{
		"for all":               {Manifest{}, ""},
		"for this":              {Manifest{Arch: []string{"amd64", "arm64"}, DeviceTypes: []string{"gateway"}, MinAgentVersion: "1.2.0"}, ""},
		"another architecture":  {Manifest{Arch: []string{"amd64"}}, `for arch ["amd64"], the device is "arm64"`},
		"another type":          {Manifest{DeviceTypes: []string{"camera"}}, `the device is "gateway"`},
		"a newer agent":         {Manifest{MinAgentVersion: "1.2.1"}, "needs agent 1.2.1"},
		"no pre-release before": {Manifest{MinAgentVersion: "1.2.0-rc.1"}, ""},
	} {
		err := tc.m.Fits(device)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || fleet.ErrorCode(err) != fleet.CodeWrongDevice) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if err := (&Manifest{MinAgentVersion: "1.0.0"}).Fits(Device{AgentVersion: "devel"}); err == nil {
		t.Error("a version that is none passes min_agent_version")
	}
}

func TestCountersStopDowngradesAndRollbackStopsAtTheFloor(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	past, future := now.Add(-time.Second), now.Add(time.Second)
	for name, tc := range map[string]struct {
		m              Manifest
		current, floor int64
		rollback       bool
		want           string
	}{
		"no counter":           {Manifest{}, 9, 9, false, ""},
		"same":                 {Manifest{Counter: 9}, 9, 0, false, ""},
		"older":                {Manifest{Counter: 8}, 9, 0, false, "below the running release's 9"},
		"older by rollback":    {Manifest{Counter: 8}, 9, 8, true, ""},
		"below floor":          {Manifest{Counter: 7}, 7, 8, false, "below the device's floor 8"},
		"rollback below floor": {Manifest{Counter: 7}, 9, 8, true, "below the device's floor 8"},
		"too late":             {Manifest{NotAfter: &past}, 0, 0, false, "not_after"},
		"in time":              {Manifest{NotAfter: &future}, 0, 0, false, ""},
	} {
		err := tc.m.Installable(now, tc.current, tc.floor, tc.rollback)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

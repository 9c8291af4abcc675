package bundle

import (
	"slices"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Device is what decides whether a bundle fits.
type Device struct {
	Arch         string // GOARCH
	Type         string // device_type
	AgentVersion string // SemVer; a development build's other text passes no min_agent_version
}

// Fits reports as fleet.CodeWrongDevice why the bundle is not for that device.
func (m *Manifest) Fits(d Device) error {
	if len(m.Arch) > 0 && !slices.Contains(m.Arch, d.Arch) {
		return fleet.Errorf(fleet.CodeWrongDevice, "the bundle is for arch %q, the device is %q", m.Arch, d.Arch)
	}
	if len(m.DeviceTypes) > 0 && !slices.Contains(m.DeviceTypes, d.Type) {
		return fleet.Errorf(fleet.CodeWrongDevice, "the bundle is for device_types %q, the device is %q", m.DeviceTypes, d.Type)
	}
	if m.MinAgentVersion != "" && CompareVersions(d.AgentVersion, m.MinAgentVersion) < 0 {
		return fleet.Errorf(fleet.CodeWrongDevice, "the bundle needs agent %s, the device has %q", m.MinAgentVersion, d.AgentVersion)
	}
	return nil
}

// Installable reports as fleet.CodeConflict why the release may not be
// installed now. Without a counter there is no protection against downgrades
// and nothing is refused but a passed not_after. current is the counter of the
// running release, floor the highest min_counter ever committed; rollback says
// that an operator named this release, which may then go below current but
// never below floor.
func (m *Manifest) Installable(now time.Time, current, floor int64, rollback bool) error {
	if m.NotAfter != nil && now.After(*m.NotAfter) {
		return fleet.Errorf(fleet.CodeConflict, "not_after %s has passed", m.NotAfter.UTC().Format(time.RFC3339))
	}
	switch {
	case m.Counter == 0:
		return nil
	case m.Counter < floor:
		return fleet.Errorf(fleet.CodeConflict, "counter %d is below the device's floor %d", m.Counter, floor)
	case !rollback && m.Counter < current:
		return fleet.Errorf(fleet.CodeConflict, "counter %d is below the running release's %d; only a rollback may go back", m.Counter, current)
	}
	return nil
}

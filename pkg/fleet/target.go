package fleet

import "time"

// TargetState is where one device of a deployment stands.
type TargetState string

// The states of a target. Every one that is not final has a deadline.
const (
	TargetPending     TargetState = "pending"     // no command yet
	TargetOffered     TargetState = "offered"     // a command is open; the device has not answered
	TargetAccepted    TargetState = "accepted"    // journaled by the device
	TargetDownloading TargetState = "downloading" // fetching the archive
	TargetInstalling  TargetState = "installing"  // verified; extracting, deploying
	TargetVerifying   TargetState = "verifying"   // switched; the health check runs
	TargetSucceeded   TargetState = "succeeded"
	TargetFailed      TargetState = "failed"      // nothing was changed
	TargetRolledBack  TargetState = "rolled_back" // changed and returned
	TargetRejected    TargetState = "rejected"    // the device refused the command
	TargetCancelled   TargetState = "cancelled"
	TargetTimedOut    TargetState = "timed_out"  // accepted, then no end in time
	TargetExpired     TargetState = "expired"    // never reached
	TargetSuperseded  TargetState = "superseded" // a newer deployment took its place
)

// order ranks the states on the way; a report may skip forward, never go back.
var order = map[TargetState]int{
	TargetPending: 1, TargetOffered: 2, TargetAccepted: 3, TargetDownloading: 4, TargetInstalling: 5, TargetVerifying: 6,
}

// TargetStates lists every state, in the order of a deployment's life.
var TargetStates = []TargetState{
	TargetPending, TargetOffered, TargetAccepted, TargetDownloading, TargetInstalling, TargetVerifying,
	TargetSucceeded, TargetFailed, TargetRolledBack, TargetRejected, TargetCancelled, TargetTimedOut, TargetExpired, TargetSuperseded,
}

// Final reports whether s never changes again.
func (s TargetState) Final() bool { return order[s] == 0 && s.Valid() }

// Valid reports whether s is a known state.
func (s TargetState) Valid() bool {
	for _, k := range TargetStates {
		if s == k {
			return true
		}
	}
	return false
}

// Active reports whether the device has taken the command and not ended it.
func (s TargetState) Active() bool { return order[s] >= order[TargetAccepted] }

// CanBecome reports whether a target may go from s to next: forward on the way
// or from any open state to a final one. A final state never changes, and
// expired is only for a device that was never reached.
func (s TargetState) CanBecome(next TargetState) bool {
	switch {
	case !s.Valid() || !next.Valid() || s.Final():
		return false
	case next == TargetExpired || next == TargetSuperseded:
		return !s.Active()
	case next == TargetTimedOut:
		return s.Active()
	case next.Final():
		return true
	}
	return order[next] > order[s]
}

// DeviceMayReport reports whether s is a state that a device can be in; the
// others are the orchestrator's own.
func (s TargetState) DeviceMayReport() bool {
	switch s {
	case TargetAccepted, TargetDownloading, TargetInstalling, TargetVerifying,
		TargetSucceeded, TargetFailed, TargetRolledBack, TargetRejected, TargetCancelled:
		return true
	}
	return false
}

// Target is one device of a deployment as the API shows it.
type Target struct {
	DeploymentID    string      `json:"deployment_id" db:"deployment_id"`
	DeviceID        string      `json:"device_id" db:"device_id"`
	BundleID        string      `json:"bundle_id" db:"bundle_id"`
	BundleVersion   string      `json:"bundle_version" db:"bundle_version"`
	State           TargetState `json:"state" db:"state"`
	Step            string      `json:"step" db:"step"`
	ErrorCode       string      `json:"error_code" db:"error_code"`
	Error           string      `json:"error" db:"error_message"`
	Output          string      `json:"output" db:"output" doc:"The end of what the scripts printed"`
	Bytes           int64       `json:"bytes" db:"bytes" doc:"Bytes of the archive that the device holds"`
	PreviousVersion string      `json:"previous_version" db:"previous_version"`
	Deadline        time.Time   `json:"deadline" db:"deadline"`
	OfferedAt       *time.Time  `json:"offered_at" db:"offered_at"`
	AcceptedAt      *time.Time  `json:"accepted_at" db:"accepted_at"`
	FinishedAt      *time.Time  `json:"finished_at" db:"finished_at"`
	DurationMS      int64       `json:"duration_ms" db:"duration_ms"`
}

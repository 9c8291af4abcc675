package update

import "github.com/kernexhq/kernex/pkg/protocol"

// State is where a deploy or rollback command stands on the device.
type State string

// The states. IDLE is the absence of a record, and the last four exist only as
// the end of one: entering them ends the record and queues the result in one
// journal write.
const (
	Idle         State = "IDLE"
	Accepted     State = "ACCEPTED"
	Downloading  State = "DOWNLOADING"
	Verified     State = "VERIFIED"
	Extracted    State = "EXTRACTED"
	Applying     State = "APPLYING"
	Switched     State = "SWITCHED"
	Health       State = "HEALTH"
	RollingBack  State = "ROLLING_BACK"
	Committed    State = "COMMITTED"
	RolledBack   State = "ROLLED_BACK"
	Failed       State = "FAILED"
	Inconsistent State = "INCONSISTENT"
)

// Action is what the machine does next.
type Action string

// The actions.
const (
	Wait    Action = "wait"    // nothing to do; a queued result is sent until acknowledged
	Fetch   Action = "fetch"   // have the archive on disk and verify it
	Unpack  Action = "unpack"  // verify it again while extracting into staging, then rename
	Apply   Action = "apply"   // check the files, deploy script, stop the old run, switch
	Check   Action = "check"   // start the new run, health check, commit
	Return  Action = "return"  // go back to the release before
	Abandon Action = "abandon" // end as failed: nothing was changed
	GiveUp  Action = "give up" // end as inconsistent: returning did not work
)

func (s State) row() row {
	for _, r := range table {
		if r.state == s {
			return r
		}
	}
	return row{state: s, resume: Wait} // a newer agent's state: touch nothing
}

// Bounds of one command's life. They end loops that no single step sees: a
// power supply that fails under load, an archive that verifies and will not
// extract.
const (
	maxSteps   = 64 // journaled transitions
	maxDeploys = 5  // starts of the deploy script: the first and "try again later"
	maxChecks  = 3  // health checks started, the agent dying in each
	maxReturns = 5  // attempts to go back
)

// Record is a command that is being executed, as the journal keeps it.
type Record struct {
	Command  protocol.Command      `json:"command"`
	State    State                 `json:"state"`
	Previous string                `json:"previous,omitempty"` // release to return to; "" is none; set in APPLYING
	Deploys  int                   `json:"deploys,omitempty"`  // deploy script started so often
	Checks   int                   `json:"checks,omitempty"`   // health check started so often
	Returns  int                   `json:"returns,omitempty"`  // return started so often
	Steps    int                   `json:"steps,omitempty"`    // transitions so far
	Cause    *protocol.ErrorDetail `json:"cause,omitempty"`    // why it returns
	Output   string                `json:"output,omitempty"`   // the scripts' own words
	Begun    int64                 `json:"begun"`              // Unix milliseconds of acceptance
}

// Next decides what to do with a record, whether the machine has just reached
// its state or found it in the journal. It is pure.
func Next(r Record) Action {
	action := r.State.row().resume
	worn := r.Steps >= maxSteps
	switch action {
	case Fetch, Unpack:
		if worn {
			return Abandon
		}
	case Apply:
		if worn || r.Deploys >= maxDeploys {
			return Abandon
		}
	case Check:
		if worn || r.Checks >= maxChecks {
			action = Return
		}
	}
	if action == Return && r.Returns >= maxReturns {
		return GiveUp
	}
	return action
}

// legal lists, for each state, those that a transition may enter. An end
// (Committed and the like) leaves the record.
var legal = map[State][]State{
	Accepted:    {Accepted, Downloading, Extracted, Committed, Failed},
	Downloading: {Accepted, Downloading, Verified, Failed},
	Verified:    {Accepted, Extracted, Failed},
	Extracted:   {Accepted, Applying, Failed},
	Applying:    {Extracted, Switched, RollingBack},
	Switched:    {Health, RollingBack},
	Health:      {Health, Committed, RollingBack},
	RollingBack: {RollingBack, RolledBack, Inconsistent},
}

// CanBecome reports whether the machine may go from s to next.
func (s State) CanBecome(next State) bool {
	for _, n := range legal[s] {
		if n == next {
			return true
		}
	}
	return false
}

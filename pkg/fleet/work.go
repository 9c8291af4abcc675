package fleet

import (
	"encoding/json"
	"time"
)

// Beat is what one device said about its presence since the last flush: its
// newest heartbeat, merged, and whether its session ended after that.
type Beat struct {
	DeviceID     string
	Session      int64 // of the heartbeat; 0: there was none
	Seq          int64
	StateRev     int64
	AgentVersion string // "" keeps what is stored, as every other zero or nil below
	Status       string
	UptimeS      int64
	CPUPct       *float64
	MemoryMB     *float64
	DiskPct      *float64
	Gone         int64 // the session that ended by will or goodbye; 0: none
}

// StateOutcome says what became of a full state report.
type StateOutcome struct {
	Refused     bool // the credential does not allow it, or there is no such device
	Stale       bool // older than what is stored
	Birth       bool // the first report of a session
	CloneSign   bool // the same session with another boot, or an older session: a copy of the device
	Quarantined bool // by this report, the second sign of a copy within 24 h
}

// Command is an open command that was claimed for one delivery. Body is what
// the command's type needs; Bundle is set for deploy and rollback, whose Body
// names the rest.
type Command struct {
	ID            string
	DeviceID      string
	Seq           int64
	ClosedThrough int64 // every seq up to it is final
	Type          string
	Body          json.RawMessage
	IssuedAt      time.Time
	NotAfter      time.Time
	Generation    int64  // of the claim
	CommandKey    string // what the device has said to have pinned; "": nothing yet
	Sends         int    // deliveries, this one counted
	Bundle        *Bundle
}

// DeployBody is the stored body of a deploy or rollback command: the bundle is
// joined when the command is sent.
type DeployBody struct {
	Deployment   string `json:"deployment"`
	BundleID     string `json:"bundle_id"`
	StepTimeoutS int    `json:"step_timeout_s"`
	MaxRate      int64  `json:"max_rate,omitempty"`
}

// RolloutState is everything that planning one deployment looks at. Times are
// the database's. Targets that can only be waited for need not be in Open: those
// of devices at work on another deployment never are.
type RolloutState struct {
	ID        string
	Status    DeploymentStatus
	Cancel    bool // asked for
	Now       time.Time
	Deadline  time.Time
	MayExpire bool // false after an outage or a start, until devices had time to report
	Total     int
	Final     map[TargetState]int // ended targets
	Failure   *RolloutFailure     // the first target that ended otherwise than in success
	Open      []RolloutTarget     // targets that may need a decision now, by device id
}

// RolloutFailure is how the first unsuccessful target ended, in the device's
// own words where it has some.
type RolloutFailure struct {
	DeviceID string
	State    TargetState
	Message  string
}

// RolloutTarget is one target that has not ended.
type RolloutTarget struct {
	DeviceID  string
	State     TargetState
	Deadline  time.Time
	Sent      bool // its command went out at least once
	Cancelled bool // a cancel command for it exists
	Revoked   bool // the device's key was revoked
}

// RolloutAction is what a Decision does.
type RolloutAction string

// The decisions of a plan.
const (
	RolloutStart     RolloutAction = "start"      // pending -> in_progress
	RolloutOffer     RolloutAction = "offer"      // pending targets get their command
	RolloutEnd       RolloutAction = "end"        // targets end in State
	RolloutAskCancel RolloutAction = "ask_cancel" // a cancel command goes to the devices
	RolloutFinish    RolloutAction = "finish"     // the deployment ends in Status
)

// Decision is one step of a plan. Which fields are set depends on Action.
type Decision struct {
	Action  RolloutAction
	Devices []string         // offer, end, ask_cancel
	State   TargetState      // end: expired, timed_out or cancelled
	Status  DeploymentStatus // finish
	Reason  string           // finish, end: why, in words; "" for success
}

// DeviceLogin is what the broker needs to let a device in.
type DeviceLogin struct {
	PublicKey  []byte // SubjectPublicKeyInfo, DER
	KeyType    string
	Credential Credential
	Epoch      int64 // rises whenever granted connections must end
}

// Enrollment is a proven request of a key to become a device.
type Enrollment struct {
	Registration
	PublicKeyDER []byte
	KeyHash      []byte // SHA-256 of PublicKeyDER
	KeyType      string
	TokenHash    []byte // SHA-256 of the claim token; nil: none given
	Nonce        string // of the connection, for the audit row
}

// Enrolled is the device that a key has become.
type Enrolled struct {
	DeviceID   string
	Credential Credential
	New        bool
	Config     Config
	Trust      ReleaseKeys
}

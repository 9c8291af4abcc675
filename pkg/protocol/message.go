package protocol

import (
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/strictjson"
)

// Heartbeat says that a device is alive and how it does. A metric that did not
// change since the session's last heartbeat may be left out.
type Heartbeat struct {
	Session      int64    `json:"session"`
	Seq          int64    `json:"seq"` // + 1 a heartbeat, from 1 in each session
	StateRev     int64    `json:"state_rev"`
	AgentVersion string   `json:"agent_version,omitempty"`
	Status       string   `json:"status,omitempty"` // healthy, degraded, error
	UptimeS      int64    `json:"uptime_s,omitempty"`
	CPUPct       *float64 `json:"cpu_pct,omitempty"`
	MemoryMB     *float64 `json:"memory_mb,omitempty"`
	DiskPct      *float64 `json:"disk_pct,omitempty"`
}

// State is a device's full report: on every connect, whenever state_rev rises
// and when an ack asks for it.
type State struct {
	Session          int64          `json:"session"`
	Boot             string         `json:"boot"` // changes with every boot of the host
	StateRev         int64          `json:"state_rev"`
	Status           string         `json:"status"`
	AgentVersion     string         `json:"agent_version"`
	OS               string         `json:"os"`
	Arch             string         `json:"arch"`
	Hardware         map[string]any `json:"hardware,omitempty"`
	BundleName       string         `json:"bundle_name,omitempty"`
	BundleVersion    string         `json:"bundle_version,omitempty"`
	Release          string         `json:"release,omitempty"` // "" before the first success
	ConfigVersion    int64          `json:"config_version"`
	ConfigOutcome    string         `json:"config_outcome,omitempty"` // applied, rejected, reverted
	ConfigError      string         `json:"config_error,omitempty"`
	LastCommand      string         `json:"last_command,omitempty"`
	LastCommandState string         `json:"last_command_state,omitempty"`
	HighestSeq       int64          `json:"highest_seq"`
	TrustMode        string         `json:"trust_mode,omitempty"`   // pinned: open or required; "": it does not know the trust command
	ReleaseKeys      []string       `json:"release_keys,omitempty"` // ids of the pinned keys
	CommandKey       string         `json:"command_key,omitempty"`  // pinned; base64url
}

// ErrorDetail is a reason for machines and people.
type ErrorDetail struct {
	Code    fleet.Code `json:"code"`
	Message string     `json:"message"`
}

// Result is progress or the outcome of one command. A terminal result is sent
// until an ack names it.
type Result struct {
	Command    string            `json:"command"`
	Attempt    int               `json:"attempt"`
	State      fleet.TargetState `json:"state"`
	Step       string            `json:"step,omitempty"`
	Error      *ErrorDetail      `json:"error,omitempty"`
	Bytes      int64             `json:"bytes,omitempty"`
	DurationMS int64             `json:"duration_ms,omitempty"`
	Output     string            `json:"output,omitempty"` // the end of the scripts' output, at most MaxOutput bytes
}

// MaxOutput bounds a result's output so that the whole stays below its cap
// even when every byte is escaped.
const MaxOutput = 2 << 10

// Log is a batch of log lines, best effort.
type Log struct {
	Lines []LogLine `json:"lines"`
}

// LogLine is one line of the agent's or the bundle's log.
type LogLine struct {
	Time    int64  `json:"t"` // Unix milliseconds by the device's clock
	Level   string `json:"level,omitempty"`
	Source  string `json:"source,omitempty"` // agent, run, deploy, rollback, health
	Message string `json:"msg"`
}

// What a Request may want.
const (
	WantURL      = "url"      // a fresh presigned URL: the command is sent again
	WantCommands = "commands" // every open command
	// WantCertificate asks for a client certificate before the current one ends;
	// the answer is in Ack.Certificate.
	WantCertificate = "certificate"
)

// Request asks the orchestrator for something.
type Request struct {
	Want    string `json:"want"`
	Command string `json:"command,omitempty"`
}

// Presence is a device's will and its goodbye.
type Presence struct {
	Online  bool  `json:"online"`
	Session int64 `json:"session"`
}

// Ack answers results after their commit, asks for reports, brings the
// certificate that was asked for and tells the time.
type Ack struct {
	Results     []ResultAck `json:"results,omitempty"`
	Want        []string    `json:"want,omitempty"`        // "state"
	Certificate string      `json:"certificate,omitempty"` // PEM, for the device's own key
	Time        int64       `json:"time"`                  // Unix seconds
}

// WantState in Ack.Want asks for a full state report.
const WantState = "state"

// ResultAck says what became of a terminal result. The device drops the result
// either way.
type ResultAck struct {
	Command  string            `json:"command"`
	State    fleet.TargetState `json:"state"`
	Accepted bool              `json:"accepted"`
	Code     fleet.Code        `json:"code,omitempty"`
}

// EnrollRequest registers a device. The first one has no challenge; the second
// repeats the first and adds the challenge and the signature over it, so that
// any replica can answer either.
type EnrollRequest struct {
	PublicKey         string         `json:"public_key"` // PEM, SubjectPublicKeyInfo
	DeviceType        string         `json:"device_type,omitempty"`
	Serial            string         `json:"serial,omitempty"`
	HardwareMetadata  map[string]any `json:"hardware_metadata,omitempty"`
	Token             string         `json:"token,omitempty"`              // claim token
	RegistrationToken string         `json:"registration_token,omitempty"` // the receipt of an earlier enrolment
	Challenge         string         `json:"challenge,omitempty"`
	Signature         string         `json:"signature,omitempty"` // base64url, no padding
}

// EnrollReply is a challenge, the device's new identity or an error.
type EnrollReply struct {
	Challenge         string        `json:"challenge,omitempty"`
	Time              int64         `json:"time"`
	DeviceID          string        `json:"device_id,omitempty"`
	RegistrationToken string        `json:"registration_token,omitempty"`
	Status            string        `json:"status,omitempty"` // active or pending
	Fleet             string        `json:"fleet,omitempty"`  // the aud of the device's JWT
	TrustMode         string        `json:"trust_mode,omitempty"`
	CommandKey        string        `json:"command_key,omitempty"` // base64url Ed25519 public key
	ReleaseKeys       []string      `json:"release_keys,omitempty"`
	Config            *fleet.Config `json:"config,omitempty"`
	Certificate       string        `json:"certificate,omitempty"` // PEM, for the device's own key; active devices of a fleet that has a CA
	CA                string        `json:"ca,omitempty"`          // PEM, of the CA that issued it
	Error             *ErrorDetail  `json:"error,omitempty"`
}

// Time is the server's clock, for devices without one.
type Time struct {
	Time int64 `json:"time"` // Unix seconds
}

// Decode reads a payload of kind: an object of at most kind's cap without
// duplicate keys. Unknown keys are ignored, so that newer peers can add some.
func Decode(kind Kind, payload []byte, v any) error {
	if len(payload) > kind.Cap() {
		return fleet.Errorf(fleet.CodeTooLarge, "%s message of %d bytes, at most %d are allowed", kind, len(payload), kind.Cap())
	}
	if err := strictjson.Decode(payload, v, false); err != nil {
		return fleet.Errorf(fleet.CodeInvalid, "%s message: %v", kind, err)
	}
	return nil
}

package fleet

import (
	"strings"
	"time"
)

// Credential is what a device's key may do, decided by operators.
type Credential string

// The credential states of a device.
const (
	CredentialPending     Credential = "pending"     // enrolled, waits for approval: may heartbeat, gets no commands
	CredentialActive      Credential = "active"      // everything a device may do
	CredentialQuarantined Credential = "quarantined" // may connect, gets no commands
	CredentialRevoked     Credential = "revoked"     // refused for ever
)

// Device is one device as the API shows it: what operators set, what it last
// reported, and Status, one word for both.
type Device struct {
	ID               string         `json:"id" doc:"Server-issued id"`
	DeviceType       string         `json:"device_type"`
	Serial           string         `json:"serial"`
	Description      string         `json:"description"`
	HardwareMetadata map[string]any `json:"hardware_metadata"`
	Labels           Labels         `json:"labels"`
	Status           string         `json:"status" enum:"online,offline,error,pending,quarantined,revoked" doc:"Credential state if it is not active, else presence; error: online with health error"`
	Health           string         `json:"health" doc:"healthy, degraded or error, as last reported; empty before the first heartbeat"`
	KeyType          string         `json:"key_type"`
	Fingerprint      string         `json:"fingerprint" doc:"SHA-256 of the public key as the agent prints it: SHA256: and unpadded base64"`
	LastHeartbeat    *time.Time     `json:"last_heartbeat"`
	LastSeen         *time.Time     `json:"last_seen"`
	AgentVersion     string         `json:"agent_version"`
	OS               string         `json:"os"`
	Arch             string         `json:"arch"`
	UptimeS          int64          `json:"uptime_s"`
	CPUPct           *float64       `json:"cpu_pct"`
	MemoryMB         *float64       `json:"memory_mb"`
	DiskPct          *float64       `json:"disk_pct"`
	BundleName       string         `json:"bundle_name" doc:"What the device reports to run"`
	BundleVersion    string         `json:"bundle_version"`
	Release          string         `json:"release"`
	ConfigVersion    int64          `json:"config_version" doc:"Desired configuration version"`
	ConfigReported   int64          `json:"config_reported" doc:"Version the device last gave an outcome for; 0 before"`
	ConfigOutcome    string         `json:"config_outcome" doc:"applied, rejected or reverted; empty before"`
	CreatedAt        time.Time      `json:"created_at"`
	UpdatedAt        time.Time      `json:"updated_at"`
}

// DeviceStatus folds credential, presence and health into the API's one word.
func DeviceStatus(c Credential, online bool, health string) string {
	switch {
	case c != CredentialActive:
		return string(c)
	case !online:
		return "offline"
	case health == "error":
		return "error"
	}
	return "online"
}

// Registration is what a new device tells about itself.
type Registration struct {
	PublicKey        string         `json:"public_key" doc:"PEM, SubjectPublicKeyInfo"`
	DeviceType       string         `json:"device_type,omitempty"`
	Serial           string         `json:"serial,omitempty"`
	HardwareMetadata map[string]any `json:"hardware_metadata,omitempty"`
	Labels           Labels         `json:"labels,omitempty"`
	Description      string         `json:"description,omitempty"`
}

// Validate checks everything but the key, which the identity package parses.
func (r Registration) Validate() error {
	if err := Text("device_type", r.DeviceType, 63); err != nil {
		return err
	}
	if err := Text("serial", r.Serial, 127); err != nil {
		return err
	}
	if err := Text("description", r.Description, 1024); err != nil {
		return err
	}
	if err := r.Labels.Validate(); err != nil {
		return err
	}
	return validateMetadata("hardware_metadata", r.HardwareMetadata)
}

// Text checks a one-line text field: at most limit bytes of UTF-8 without
// control characters.
func Text(name, s string, limit int) error {
	if len(s) > limit {
		return Errorf(CodeInvalid, "%s is %d bytes, at most %d are allowed", name, len(s), limit)
	}
	if strings.ToValidUTF8(s, "") != s || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Errorf(CodeInvalid, "%s %q holds a control character or is not UTF-8", name, s)
	}
	return nil
}

// Heartbeat is one stored sample of a device.
type Heartbeat struct {
	At       time.Time `json:"at" db:"at"`
	Status   string    `json:"status" db:"status"`
	UptimeS  int64     `json:"uptime_s" db:"uptime_s"`
	CPUPct   *float64  `json:"cpu_pct" db:"cpu_pct"`
	MemoryMB *float64  `json:"memory_mb" db:"memory_mb"`
	DiskPct  *float64  `json:"disk_pct" db:"disk_pct"`
}

package protocol

import (
	"crypto/ed25519"
	"encoding/json"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// CommandType says what a command asks a device to do.
type CommandType string

// The command types.
const (
	CommandDeploy    CommandType = "deploy"
	CommandRollback  CommandType = "rollback"
	CommandConfigure CommandType = "configure"
	CommandCancel    CommandType = "cancel"
	CommandRestart   CommandType = "restart"
	CommandLogs      CommandType = "logs"
	CommandRotateKey CommandType = "rotate_key"
	CommandTrust     CommandType = "trust"
)

// Command is what the orchestrator signs for one device. Exactly the body that
// belongs to Type is set.
type Command struct {
	ID            string      `json:"id"`
	Device        string      `json:"device"`
	Seq           int64       `json:"seq"`
	ClosedThrough int64       `json:"closed_through"` // every seq up to it is final
	Type          CommandType `json:"type"`
	IssuedAt      int64       `json:"issued_at"`           // Unix seconds
	NotAfter      int64       `json:"not_after"`           // Unix seconds
	Deploy        *Deploy     `json:"deploy,omitempty"`    // deploy and rollback
	Configure     *Configure  `json:"configure,omitempty"` // configure
	Cancel        *Cancel     `json:"cancel,omitempty"`    // cancel
	Logs          *Logs       `json:"logs,omitempty"`      // logs
	Trust         *Trust      `json:"trust,omitempty"`     // trust
}

// Deploy is the body of deploy and rollback: which release, from where, how
// long. url and url_expires_at may differ when the same command is sent again.
type Deploy struct {
	Deployment   string    `json:"deployment"`
	Bundle       BundleRef `json:"bundle"`
	StepTimeoutS int       `json:"step_timeout_s"`     // the device's deploy_timeout_s
	MaxRate      int64     `json:"max_rate,omitempty"` // bytes a second; 0 is unlimited
}

// BundleRef names one release and where its archive is.
type BundleRef struct {
	Name         string   `json:"name"`
	Version      string   `json:"version"`
	Release      string   `json:"release"`            // SHA-256 of manifest.json, hex
	Checksum     string   `json:"checksum"`           // SHA-256 of the archive, hex
	Size         int64    `json:"size"`               // bytes of the archive
	Expanded     int64    `json:"expanded,omitempty"` // bytes of its files; 0: not told
	Files        int      `json:"files,omitempty"`    // how many; 0: not told
	URL          string   `json:"url,omitempty"`
	URLExpiresAt int64    `json:"url_expires_at,omitempty"` // Unix seconds
	ETag         string   `json:"etag,omitempty"`           // for If-Match
	PartSize     int64    `json:"part_size,omitempty"`
	Parts        []string `json:"parts,omitempty"` // SHA-256 of each part, base64url without padding
	// Signature is minisign's over manifest.json by a release key. It counts as
	// much as one in the archive and may be there as well or instead.
	Signature string `json:"signature,omitempty"`
}

// Configure is the body of configure: the whole configuration.
type Configure struct {
	Config fleet.Config `json:"config"`
}

// Cancel is the body of cancel: which command to give up.
type Cancel struct {
	Command string `json:"command"`
}

// Validate checks that the command is whole: its body fits its type.
func (c Command) Validate() error {
	bodies := 0
	for _, set := range []bool{c.Deploy != nil, c.Configure != nil, c.Cancel != nil, c.Logs != nil, c.Trust != nil} {
		if set {
			bodies++
		}
	}
	ok := c.ID != "" && c.Seq > 0 && c.ClosedThrough < c.Seq && c.ClosedThrough >= 0 && bodies <= 1
	switch c.Type {
	case CommandDeploy, CommandRollback:
		ok = ok && c.Deploy != nil && c.Deploy.Bundle.Size > 0 && len(c.Deploy.Bundle.Release) == 64 && len(c.Deploy.Bundle.Checksum) == 64
	case CommandConfigure:
		ok = ok && c.Configure != nil
		if ok {
			if err := c.Configure.Config.Validate(); err != nil {
				return err
			}
		}
	case CommandCancel:
		ok = ok && c.Cancel != nil && c.Cancel.Command != ""
	case CommandLogs:
		ok = ok && c.Logs != nil
		if ok {
			if err := c.Logs.Validate(); err != nil {
				return err
			}
		}
	case CommandTrust:
		ok = ok && c.Trust != nil
		if ok {
			if err := c.Trust.Validate(); err != nil {
				return err
			}
		}
	case CommandRestart, CommandRotateKey:
		ok = ok && bodies == 0
	default:
		return fleet.Errorf(fleet.CodeUnsupported, "command %s: type %q is unknown to this version", c.ID, c.Type)
	}
	if !ok || !fleet.ValidDeviceID(c.Device) {
		return fleet.Errorf(fleet.CodeInvalid, "command %s for %q: seq %d, closed_through %d, type %s without its body", c.ID, c.Device, c.Seq, c.ClosedThrough, c.Type)
	}
	return nil
}

// SignCommand returns the command as a compact JWS (EdDSA, RFC 7515 and 8037):
// that string is the payload of the command topic.
func SignCommand(c Command, key ed25519.PrivateKey) ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return nil, fleet.Errorf(fleet.CodeInternal, "encode command %s: %w", c.ID, err)
	}
	out := signJWS(payload, key)
	if len(out) > KindCommand.Cap() {
		return nil, fleet.Errorf(fleet.CodeTooLarge, "command %s is %d bytes signed, at most %d are allowed", c.ID, len(out), KindCommand.Cap())
	}
	return out, nil
}

// OpenCommand verifies a command's signature by key, then decodes and
// validates it. Nothing of an unverified command is looked at.
func OpenCommand(payload []byte, key ed25519.PublicKey) (Command, error) {
	var c Command
	if len(payload) > KindCommand.Cap() {
		return c, fleet.Errorf(fleet.CodeTooLarge, "command of %d bytes, at most %d are allowed", len(payload), KindCommand.Cap())
	}
	body, err := openJWS(payload, key)
	if err != nil {
		return c, err
	}
	if err := Decode(KindCommand, body, &c); err != nil {
		return c, err
	}
	return c, c.Validate()
}

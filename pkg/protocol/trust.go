package protocol

import (
	"crypto/ed25519"
	"encoding/base64"
	"regexp"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Trust is the body of trust: what a device is to believe from now on. Keys are
// all that there ever were, in the order in which they were added. A device
// takes one that it has not pinned only if a key that it trusts by then has
// signed it; a device whose mode is open takes the first one as it stands.
// Then it drops the revoked ones for good. At least one stays.
type Trust struct {
	Mode       string     `json:"mode"` // open or required; a device never goes back to open
	Keys       []TrustKey `json:"keys,omitempty"`
	Revoked    []string   `json:"revoked,omitempty"`     // ids of keys
	CommandKey string     `json:"command_key,omitempty"` // base64url Ed25519: what signs commands once the device reports it
}

// TrustKey is one release key. Signature is minisign's over the exact bytes of
// File, which is the text of a minisign .pub file or its one line.
type TrustKey struct {
	File      string `json:"file"`
	Signature string `json:"signature,omitempty"` // "": the first key
}

// Bounds of a trust command and of what a device reports to trust.
const (
	maxTrustKeys  = 64
	maxTrustWords = 4 << 10 // bytes of a signature; minisign's own bound is near
)

var keyID = regexp.MustCompile(`^[0-9a-f]{16}$`)

// Validate checks the body's bounds; whether the keys are keys is the device's
// to say.
func (t Trust) Validate() error {
	bad := func(format string, args ...any) error {
		return fleet.Errorf(fleet.CodeInvalid, "trust: "+format, args...)
	}
	switch {
	case t.Mode != fleet.TrustOpen && t.Mode != fleet.TrustRequired:
		return bad("mode %q, use open or required", t.Mode)
	case t.Mode == fleet.TrustRequired && len(t.Keys) == 0:
		return bad("mode required without a key")
	case t.Mode == fleet.TrustOpen && len(t.Keys)+len(t.Revoked) > 0:
		return bad("mode open with keys")
	case len(t.Keys) > maxTrustKeys || len(t.Revoked) > maxTrustKeys:
		return bad("%d keys, %d revoked; at most %d", len(t.Keys), len(t.Revoked), maxTrustKeys)
	}
	for _, k := range t.Keys {
		if k.File == "" || len(k.File) > maxTrustWords || len(k.Signature) > maxTrustWords {
			return bad("a key of %d bytes with a signature of %d", len(k.File), len(k.Signature))
		}
	}
	for _, id := range t.Revoked {
		if !keyID.MatchString(id) {
			return bad("revoked %.32q, use 16 hex digits", id)
		}
	}
	if t.CommandKey != "" {
		if _, err := ParseCommandKey(t.CommandKey); err != nil {
			return err
		}
	}
	return nil
}

// ParseCommandKey decodes a command key as EnrollReply and Trust carry it.
func ParseCommandKey(text string) (ed25519.PublicKey, error) {
	key, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, fleet.Errorf(fleet.CodeInvalid, "the command key %.64q is no Ed25519 public key in base64url", text)
	}
	return key, nil
}

// CommandKeyText is the form that ParseCommandKey reads.
func CommandKeyText(key ed25519.PublicKey) string { return base64.RawURLEncoding.EncodeToString(key) }

func (s State) validTrust() error {
	if s.TrustMode != "" && s.TrustMode != fleet.TrustOpen && s.TrustMode != fleet.TrustRequired {
		return fleet.Errorf(fleet.CodeInvalid, "state: trust_mode %.32q, use open or required", s.TrustMode)
	}
	if len(s.ReleaseKeys) > maxTrustKeys {
		return fleet.Errorf(fleet.CodeInvalid, "state: %d release_keys, at most %d", len(s.ReleaseKeys), maxTrustKeys)
	}
	for _, id := range s.ReleaseKeys {
		if !keyID.MatchString(id) {
			return fleet.Errorf(fleet.CodeInvalid, "state: release_keys has %.32q, use 16 hex digits", id)
		}
	}
	if s.CommandKey != "" {
		_, err := ParseCommandKey(s.CommandKey)
		return err
	}
	return nil
}

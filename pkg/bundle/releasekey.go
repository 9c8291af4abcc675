package bundle

import (
	"fmt"
	"strings"

	"aead.dev/minisign"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// MaxReleaseKeyBytes bounds the text of a public key file.
const MaxReleaseKeyBytes = 512

// ReleaseKey is the public half of a key that signs bundles.
type ReleaseKey struct{ key minisign.PublicKey }

// ParseReleaseKey reads a minisign public key: its one line ("RW...") or a .pub
// file, of which that is the second line.
func ParseReleaseKey(text string) (ReleaseKey, error) {
	var key minisign.PublicKey
	if len(text) > MaxReleaseKeyBytes {
		return ReleaseKey{}, fleet.Errorf(fleet.CodeInvalid, "a release key of %d bytes, at most %d are allowed", len(text), MaxReleaseKeyBytes)
	}
	if err := key.UnmarshalText([]byte(strings.TrimSpace(text))); err != nil {
		return ReleaseKey{}, fleet.Errorf(fleet.CodeInvalid, "release key %.80q: %v", text, err)
	}
	return ReleaseKey{key}, nil
}

// ID returns the key id as 16 lower-case hex digits; minisign shows the same in
// upper case. It is a name, not a fingerprint: whoever makes a key chooses it.
func (k ReleaseKey) ID() string { return fmt.Sprintf("%016x", k.key.ID()) }

// String returns the one-line form.
func (k ReleaseKey) String() string { return k.key.String() }

// File returns the .pub file.
func (k ReleaseKey) File() []byte {
	text, _ := k.key.MarshalText() // never fails
	return append(text, '\n')
}

// VerifyNewKey checks that one of the trusted keys has signed the exact bytes of
// a new key's file, and returns which.
func VerifyNewKey(file, signature string, trusted []string) (signer ReleaseKey, err error) {
	if signature == "" {
		return ReleaseKey{}, fleet.Errorf(fleet.CodeBadSignature, "a further release key must be signed by one that is trusted already: kernex release-key add NEW.pub --key OLD.key")
	}
	text, err := verify("the new key", []byte(file), []byte(signature), trusted)
	if err != nil {
		return ReleaseKey{}, err
	}
	return ParseReleaseKey(text)
}

package agent

import (
	"crypto/ed25519"
	"slices"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// trust takes over what a command says is to be trusted; it is durable when it
// returns nil, and after an error nothing has changed.
func (c *cache) trust(t protocol.Trust) error {
	return c.change(func(e *enrolled) error {
		if t.Mode == fleet.TrustRequired {
			if err := e.follow(t); err != nil {
				return err
			}
		} else if e.trustMode() == trustRequired && t.CommandKey == "" {
			return fleet.Errorf(fleet.CodeConflict, "this device requires signatures; only its owner, at the device, can take that back")
		}
		if t.CommandKey != "" && t.CommandKey != e.CommandKey {
			// The old key counts until the new one has signed something: what is
			// on its way was signed by the old.
			e.CommandKey, e.OldCommandKey = t.CommandKey, e.CommandKey
		}
		return nil
	})
}

// follow walks the chain of release keys from those that are pinned to those
// that are to be. Whoever holds the command key alone can end keys, never add
// one.
func (e *enrolled) follow(t protocol.Trust) error {
	trusted, gone := slices.Clone(e.ReleaseKeys), slices.Clone(e.RevokedKeys)
	first := e.trustMode() != trustRequired && len(trusted) == 0
	for _, k := range t.Keys {
		key, err := bundle.ParseReleaseKey(k.File)
		if err != nil {
			return err
		}
		if slices.Contains(trusted, key.String()) || slices.Contains(gone, key.ID()) {
			continue
		}
		if !first {
			if _, err := bundle.VerifyNewKey(k.File, k.Signature, trusted); err != nil {
				if slices.Contains(t.Revoked, key.ID()) {
					continue // it is of the past, and nothing here hangs on it
				}
				return fleet.Errorf(fleet.CodeBadSignature, "release key %s: %s", key.ID(), fleet.ErrorMessage(err))
			}
		}
		first = false
		trusted = append(trusted, key.String())
	}
	gone = append(gone, t.Revoked...)
	slices.Sort(gone)
	gone = slices.Compact(gone)
	trusted = slices.DeleteFunc(trusted, func(line string) bool {
		key, err := bundle.ParseReleaseKey(line)
		return err == nil && slices.Contains(gone, key.ID())
	})
	if len(trusted) == 0 {
		return fleet.Errorf(fleet.CodeBadSignature, "no release key would be left that this device trusts")
	}
	e.TrustMode, e.ReleaseKeys, e.RevokedKeys = trustRequired, trusted, gone
	return nil
}

// trustMode is required unless the device was told that it is open: a word that
// nobody can read asks for signatures.
func (e enrolled) trustMode() string {
	if e.TrustMode == fleet.TrustOpen || e.TrustMode == "" {
		return fleet.TrustOpen
	}
	return trustRequired
}

// releaseKeyIDs names the pinned keys. One that cannot be read has no name; it
// lets nothing be installed.
func (e enrolled) releaseKeyIDs() []string {
	var ids []string
	for _, line := range e.ReleaseKeys {
		if key, err := bundle.ParseReleaseKey(line); err == nil {
			ids = append(ids, key.ID())
		}
	}
	return ids
}

// commandKeys are the keys that may have signed a command, the pinned one first.
func (e enrolled) commandKeys() []ed25519.PublicKey {
	var keys []ed25519.PublicKey
	for _, text := range []string{e.CommandKey, e.OldCommandKey} {
		if key, err := protocol.ParseCommandKey(text); err == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

// openCommand verifies a command by the pinned key. While a key change is under
// way that may be the old one still; the first command by the new one ends that.
func (c *cache) openCommand(payload []byte) (protocol.Command, error) {
	var cmd protocol.Command
	err := fleet.Errorf(fleet.CodeBadSignature, "no command key is pinned")
	for i, key := range c.get().commandKeys() {
		cmd, err = protocol.OpenCommand(payload, key)
		if fleet.ErrorCode(err) == fleet.CodeBadSignature {
			continue
		}
		if i == 0 && c.get().OldCommandKey != "" {
			if err := c.change(func(e *enrolled) error { e.OldCommandKey = ""; return nil }); err != nil {
				return cmd, err
			}
		}
		break
	}
	return cmd, err
}

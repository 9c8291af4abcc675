package orchestrator

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/secretfile"
)

// keys are what the orchestrator signs and seals with. Every replica has the
// same file.
type keys struct {
	command   ed25519.PrivateKey
	next      ed25519.PrivateKey // what devices are to pin instead; nil: no change is under way
	challenge []byte             // seals enrolment challenges, so that any replica can verify them
	group     []byte             // names the shared subscriptions; only replicas can know it
}

// loadKeys reads the command key's seed from a 0600 file, making it at the
// first start. A device pins the public half at enrolment, so a lost file means
// enrolling every device again.
func loadKeys(path string) (keys, error) {
	seed, err := loadSeed(path)
	if err != nil {
		return keys{}, err
	}
	challenge, err := hkdf.Key(sha256.New, seed, nil, "kernex-enroll-challenge-v1", 32)
	if err != nil {
		return keys{}, fmt.Errorf("derive challenge key: %w", err)
	}
	group, err := hkdf.Key(sha256.New, seed, nil, "kernex-share-group-v1", 12)
	if err != nil {
		return keys{}, fmt.Errorf("derive the group's name: %w", err)
	}
	return keys{command: ed25519.NewKeyFromSeed(seed), challenge: challenge, group: group}, nil
}

// ShareGroup names the shared subscriptions of all replicas that have this
// command key. It is made at the first start, as New does.
func ShareGroup(commandKeyFile string) (string, error) {
	k, err := loadKeys(commandKeyFile)
	return "kernex-" + hex.EncodeToString(k.group), err
}

// loadSeed reads a command key file, making it if it is missing.
func loadSeed(path string) ([]byte, error) {
	text, _, err := secretfile.ReadOrMake(path, func() (string, error) {
		seed := make([]byte, ed25519.SeedSize)
		if _, err := rand.Read(seed); err != nil {
			return "", fmt.Errorf("make command key: %w", err)
		}
		return base64.StdEncoding.EncodeToString(seed), nil
	})
	if err != nil {
		return nil, err
	}
	seed, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("command key %s does not hold %d bytes in base64", path, ed25519.SeedSize)
	}
	return seed, nil
}

// loadNextKey reads the key that takes over, nil if there is none.
func loadNextKey(path string) (ed25519.PrivateKey, error) {
	if path == "" {
		return nil, nil
	}
	seed, err := loadSeed(path)
	if err != nil {
		return nil, fmt.Errorf("next command key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func (k keys) commandText() string { return publicText(k.command) }

func (k keys) nextText() string {
	if k.next == nil {
		return ""
	}
	return publicText(k.next)
}

func publicText(key ed25519.PrivateKey) string {
	public, _ := key.Public().(ed25519.PublicKey) // always one
	return protocol.CommandKeyText(public)
}

package orchestrator

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"github.com/kernexhq/kernex/pkg/secretfile"
)

// keys are what the orchestrator signs and seals with. Every replica has the
// same file.
type keys struct {
	command   ed25519.PrivateKey
	challenge []byte // seals enrolment challenges, so that any replica can verify them
	group     []byte // names the shared subscriptions; only replicas can know it
}

// loadKeys reads the command key's seed from a 0600 file, making it at the
// first start. A device pins the public half at enrolment, so a lost file means
// enrolling every device again.
func loadKeys(path string) (keys, error) {
	text, _, err := secretfile.ReadOrMake(path, func() (string, error) {
		seed := make([]byte, ed25519.SeedSize)
		if _, err := rand.Read(seed); err != nil {
			return "", fmt.Errorf("make command key: %w", err)
		}
		return base64.StdEncoding.EncodeToString(seed), nil
	})
	if err != nil {
		return keys{}, err
	}
	seed, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(seed) != ed25519.SeedSize {
		return keys{}, fmt.Errorf("command key %s does not hold %d bytes in base64", path, ed25519.SeedSize)
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

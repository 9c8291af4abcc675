package agent

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// enrolled is device_config.json: what the orchestrator told this device, which
// has to survive restarts without it.
type enrolled struct {
	DeviceID          string        `json:"device_id"`
	Status            string        `json:"status"` // active or pending
	Fleet             string        `json:"fleet"`
	Broker            string        `json:"broker"` // where it enrolled
	Root              string        `json:"root"`
	RegistrationToken string        `json:"registration_token"`
	CommandKey        string        `json:"command_key"` // pinned; base64url Ed25519
	TrustMode         string        `json:"trust_mode"`
	OldCommandKey     string        `json:"old_command_key,omitempty"` // counts until CommandKey has signed something
	ReleaseKeys       []string      `json:"release_keys,omitempty"`
	RevokedKeys       []string      `json:"revoked_keys,omitempty"` // ids that never come back
	Config            fleet.Config  `json:"config"`
	Before            *fleet.Config `json:"before,omitempty"` // in force before Config, which is on trial; nil: it is not
	Reported          int64         `json:"reported"`         // config version that Outcome is about
	Outcome           string        `json:"outcome"`
	Error             string        `json:"error,omitempty"`
}

// Words of enrolled.Status, TrustMode and Outcome.
const (
	statusActive  = "active"
	trustRequired = "required"
	applied       = "applied"
	rejected      = "rejected"
	reverted      = "reverted"
)

// cache holds the file's content; every change is durable before it is seen.
type cache struct {
	state stateDir

	mu    sync.Mutex
	value enrolled
}

// openCache reads the file; a device that has not enrolled has none.
func openCache(s stateDir) (*cache, error) {
	c := &cache{state: s, value: enrolled{Config: fleet.DefaultConfig()}}
	data, err := os.ReadFile(s.configPath())
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the device's configuration: %w", err)
	}
	if err := json.Unmarshal(data, &c.value); err != nil {
		return nil, fmt.Errorf("read %s: %w", s.configPath(), err)
	}
	return c, nil
}

func (c *cache) get() enrolled {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.value
}

func (c *cache) change(f func(*enrolled) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.value
	if err := f(&next); err != nil {
		return err
	}
	data, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the device's configuration: %w", err)
	}
	if err := c.state.fs.WriteFile("device-config", c.state.configPath(), append(data, '\n'), 0o600); err != nil {
		return err
	}
	c.value = next
	return nil
}

// enroll keeps an enrolment's reply. Keys that are pinned already stay: only a
// command signed by the old key may change them.
func (c *cache) enroll(cfg Config, reply protocol.EnrollReply) error {
	return c.change(func(e *enrolled) error {
		if e.DeviceID != "" && e.DeviceID != reply.DeviceID {
			return fleet.Errorf(fleet.CodeConflict, "this device is %s, the orchestrator now calls it %s", e.DeviceID, reply.DeviceID)
		}
		e.DeviceID, e.Status, e.Fleet = reply.DeviceID, reply.Status, reply.Fleet
		e.Broker, e.Root = cfg.Broker, cfg.Root
		if reply.RegistrationToken != "" {
			e.RegistrationToken = reply.RegistrationToken
		}
		if e.CommandKey == "" {
			e.CommandKey, e.ReleaseKeys, e.TrustMode = reply.CommandKey, reply.ReleaseKeys, reply.TrustMode
		}
		if reply.Config != nil && reply.Config.Version > e.Reported {
			if err := reply.Config.Validate(); err != nil {
				e.Reported, e.Outcome, e.Error = reply.Config.Version, rejected, fleet.ErrorMessage(err)
			} else {
				e.Config, e.Reported, e.Outcome, e.Error = *reply.Config, reply.Config.Version, applied, ""
			}
		}
		if _, err := e.commandKey(); e.Status == statusActive && err != nil {
			return err
		}
		return nil
	})
}

// commandKey decodes the pinned key.
func (e enrolled) commandKey() (ed25519.PublicKey, error) {
	key, err := base64.RawURLEncoding.DecodeString(e.CommandKey)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, fleet.Errorf(fleet.CodeInvalid, "the command key %q is no Ed25519 public key in base64url", e.CommandKey)
	}
	return key, nil
}

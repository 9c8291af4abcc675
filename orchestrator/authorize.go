package orchestrator

import (
	"context"
	"fmt"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
)

// Access is what a login on the broker may do.
type Access struct {
	Role       string    `json:"role"` // device, monitor or service
	ID         string    `json:"id"`   // device id or token id
	Restricted bool      `json:"restricted,omitempty"`
	Epoch      int64     `json:"epoch,omitempty"`
	Expires    time.Time `json:"expires,omitzero"`
}

// Authorize judges a login on the broker: a device by a JWT of its own key, a
// monitor or a service by an API token of that role. Every refusal is
// fleet.CodeUnauthorized; its message is for the log, a client only learns that
// it was refused.
func (o *Orchestrator) Authorize(ctx context.Context, username, clientID string, password []byte) (Access, error) {
	switch username {
	case string(fleet.RoleMonitor), string(fleet.RoleService):
		t, err := o.db.Token(ctx, string(password))
		if err != nil {
			return Access{}, err
		}
		if string(t.Role) != username {
			return Access{}, refusef("a token of role %s is no %s login", t.Role, username)
		}
		a := Access{Role: username, ID: t.ID}
		if t.ExpiresAt != nil {
			a.Expires = *t.ExpiresAt
		}
		return a, nil
	}
	if username != clientID || !fleet.ValidDeviceID(username) {
		return Access{}, refusef("username %.64q is no device id, or the client id is another one", username)
	}
	d, err := o.db.DeviceLogin(ctx, username)
	if fleet.ErrorCode(err) == fleet.CodeNotFound {
		return Access{}, refusef("device %s is unknown", username)
	}
	if err != nil {
		return Access{}, err
	}
	if d.Credential == fleet.CredentialRevoked {
		return Access{}, refusef("device %s is revoked", username)
	}
	key, err := identity.ParsePublicKeyDER(d.PublicKey)
	if err != nil {
		return Access{}, fmt.Errorf("read key of device %s: %w", username, err)
	}
	if err := identity.VerifyDeviceToken(string(password), key, username, o.fleet, time.Now()); err != nil {
		return Access{}, refusef("device %s: %s", username, fleet.ErrorMessage(err))
	}
	return Access{Role: "device", ID: username, Restricted: d.Credential != fleet.CredentialActive, Epoch: d.Epoch}, nil
}

func refusef(format string, args ...any) error {
	return fleet.Errorf(fleet.CodeUnauthorized, format, args...)
}

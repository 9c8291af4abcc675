package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// NewToken asks for an API token.
type NewToken struct {
	Name      string     `json:"name"`
	Role      fleet.Role `json:"role"`
	Selector  string     `json:"selector,omitempty"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// CreatedToken is a new API token with its secret, which is shown this once.
type CreatedToken struct {
	fleet.APIToken
	Token string `json:"token"`
}

// CreateToken makes an API token.
func (c *Client) CreateToken(ctx context.Context, n NewToken) (CreatedToken, error) {
	return secret(func() (t CreatedToken, secret string, err error) {
		err = c.post(ctx, "/tokens", n, &t)
		return t, t.Token, err
	}, func(t CreatedToken) error { return c.RevokeToken(ctx, t.ID) })
}

// secret makes a token. The answer that names a secret comes once: if it was
// lost, the repeat of the call answers without it, and that token, which nobody
// can use, is revoked and another one made.
func secret[T any](create func() (t T, secret string, err error), revoke func(T) error) (T, error) {
	for try := 0; ; try++ {
		t, s, err := create()
		if err != nil || s != "" {
			return t, err
		}
		if err := revoke(t); err != nil {
			return t, fmt.Errorf("revoke the token whose secret was lost: %w", err)
		}
		if try == 2 {
			return t, fleet.Errorf(fleet.CodeUnavailable, "the answer with the new token was lost three times; none is left behind")
		}
	}
}

// Tokens lists API tokens without their secrets.
func (c *Client) Tokens(ctx context.Context, limit int) (fleet.List[fleet.APIToken], error) {
	return list[fleet.APIToken](ctx, c, "/tokens", nil, limit)
}

// RevokeToken ends an API token.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: path("tokens", id)}, nil)
}

// NewEnrollmentToken asks for a claim token.
type NewEnrollmentToken struct {
	Description string       `json:"description,omitempty"`
	Labels      fleet.Labels `json:"labels,omitempty"`
	Serials     []string     `json:"serials,omitempty"`
	MaxUses     int          `json:"max_uses"` // 0 is without a limit
	AutoApprove bool         `json:"auto_approve"`
	ExpiresAt   *time.Time   `json:"expires_at,omitempty"`
}

// CreatedEnrollmentToken is a new claim token with its secret, which is shown
// this once.
type CreatedEnrollmentToken struct {
	fleet.EnrollmentToken
	Token string `json:"token"`
}

// CreateEnrollmentToken makes a claim token.
func (c *Client) CreateEnrollmentToken(ctx context.Context, n NewEnrollmentToken) (CreatedEnrollmentToken, error) {
	return secret(func() (t CreatedEnrollmentToken, secret string, err error) {
		err = c.post(ctx, "/enrollment-tokens", n, &t)
		return t, t.Token, err
	}, func(t CreatedEnrollmentToken) error { return c.RevokeEnrollmentToken(ctx, t.ID) })
}

// EnrollmentTokens lists claim tokens without their secrets.
func (c *Client) EnrollmentTokens(ctx context.Context, limit int) (fleet.List[fleet.EnrollmentToken], error) {
	return list[fleet.EnrollmentToken](ctx, c, "/enrollment-tokens", nil, limit)
}

// RevokeEnrollmentToken ends a claim token; devices that used it stay.
func (c *Client) RevokeEnrollmentToken(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: path("enrollment-tokens", id)}, nil)
}

// Audit lists changes, newest first; empty fields of f are any, limit 0 is all.
func (c *Client) Audit(ctx context.Context, f fleet.AuditFilter, limit int) (fleet.List[fleet.AuditEntry], error) {
	q := url.Values{}
	set(q, "actor", f.Actor)
	set(q, "action", f.Action)
	set(q, "subject", f.Subject)
	return list[fleet.AuditEntry](ctx, c, "/audit", q, limit)
}

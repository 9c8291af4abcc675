package client

import (
	"context"
	"net/http"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// NewReleaseKey asks for a key that may sign bundles. Signature is minisign's
// over the exact bytes of PublicKey by a release key that counts; the first key
// needs none.
type NewReleaseKey struct {
	PublicKey   string `json:"public_key"` // a .pub file, or its one line
	Signature   string `json:"signature,omitempty"`
	Description string `json:"description,omitempty"`
}

// ReleaseKeys returns the fleet's trust mode and its release keys.
func (c *Client) ReleaseKeys(ctx context.Context) (fleet.ReleaseKeys, error) {
	var k fleet.ReleaseKeys
	return k, c.get(ctx, "/release-keys", &k)
}

// AddReleaseKey adds a release key; the first one makes every device require
// signatures, for good.
func (c *Client) AddReleaseKey(ctx context.Context, n NewReleaseKey) (fleet.ReleaseKey, error) {
	var k fleet.ReleaseKey
	return k, c.post(ctx, "/release-keys", n, &k)
}

// RevokeReleaseKey ends a release key, for good; the last one is CodeConflict.
func (c *Client) RevokeReleaseKey(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: path("release-keys", id)}, nil)
}

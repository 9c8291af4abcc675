package client

import (
	"context"
	"net/url"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// NewDeployment says what goes where: to TargetDevices or to the devices that
// Selector chooses; the empty selector is the whole fleet, nil is none.
type NewDeployment struct {
	Bundle        string        `json:"bundle"`
	BundleVersion string        `json:"bundle_version"`
	TargetDevices []string      `json:"target_devices,omitempty"`
	Selector      *string       `json:"selector,omitempty"`
	Description   string        `json:"description,omitempty"`
	Rollout       fleet.Rollout `json:"rollout,omitzero"`
}

// Deploy creates a deployment.
func (c *Client) Deploy(ctx context.Context, n NewDeployment) (fleet.Deployment, error) {
	var d fleet.Deployment
	return d, c.post(ctx, "/deployments", n, &d)
}

// Deployments lists deployments, newest first; status "" is any, limit 0 all.
func (c *Client) Deployments(ctx context.Context, status string, limit int) (fleet.List[fleet.Deployment], error) {
	q := url.Values{}
	set(q, "status", status)
	return list[fleet.Deployment](ctx, c, "/deployments", q, limit)
}

// Deployment returns one deployment with its progress.
func (c *Client) Deployment(ctx context.Context, id string) (fleet.Deployment, error) {
	var d fleet.Deployment
	return d, c.get(ctx, path("deployments", id), &d)
}

// Targets lists a deployment's devices; state "" is any, limit 0 all.
func (c *Client) Targets(ctx context.Context, id string, state fleet.TargetState, limit int) (fleet.List[fleet.Target], error) {
	q := url.Values{}
	set(q, "state", string(state))
	return list[fleet.Target](ctx, c, path("deployments", id, "targets"), q, limit)
}

// Cancel ends a deployment: devices that have not switched keep what they run.
func (c *Client) Cancel(ctx context.Context, id string) (fleet.Deployment, error) {
	return c.deployment(ctx, id, "cancel", nil)
}

// Retry creates a deployment like id, which has ended, for the devices on which
// it did not succeed.
func (c *Client) Retry(ctx context.Context, id string) (fleet.Deployment, error) {
	return c.deployment(ctx, id, "retry", nil)
}

// RollbackDeployment creates the deployment that takes id's devices to
// targetVersion, or, when that is empty, to what each had before.
func (c *Client) RollbackDeployment(ctx context.Context, id, targetVersion string) (fleet.Deployment, error) {
	return c.deployment(ctx, id, "rollback", struct {
		TargetVersion string `json:"target_version,omitempty"`
	}{targetVersion})
}

func (c *Client) deployment(ctx context.Context, id, action string, body any) (fleet.Deployment, error) {
	var d fleet.Deployment
	return d, c.post(ctx, path("deployments", id, action), body, &d)
}

// NewRollback names devices and a version that each of them has run before.
type NewRollback struct {
	BundleVersion   string   `json:"bundle_version"`
	TargetDeviceIDs []string `json:"target_device_ids"`
	Bundle          string   `json:"bundle,omitempty"` // empty: whichever had that version
	Description     string   `json:"description,omitempty"`
}

// RollbackDevices creates a rollback deployment; CodeInvalid unless every
// device has that version as a success in its history.
func (c *Client) RollbackDevices(ctx context.Context, n NewRollback) (fleet.Deployment, error) {
	var d fleet.Deployment
	return d, c.post(ctx, "/devices/rollback", n, &d)
}

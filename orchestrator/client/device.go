package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// DeviceFilter narrows a list of devices; empty fields do not.
type DeviceFilter struct {
	Selector      string // "site=berlin,ring!=canary"
	Status        string // online, offline, error, pending, quarantined or revoked
	BundleVersion string
	Query         string // part of an id, serial or description
}

func (f DeviceFilter) query() url.Values {
	q := url.Values{}
	set(q, "selector", f.Selector)
	set(q, "status", f.Status)
	set(q, "bundle_version", f.BundleVersion)
	set(q, "q", f.Query)
	return q
}

func set(q url.Values, key, value string) {
	if value != "" {
		q.Set(key, value)
	}
}

// Devices lists at most limit devices; 0 is all of them.
func (c *Client) Devices(ctx context.Context, f DeviceFilter, limit int) (fleet.List[fleet.Device], error) {
	return list[fleet.Device](ctx, c, "/devices", f.query(), limit)
}

// Device returns one device; CodeNotFound when there is none.
func (c *Client) Device(ctx context.Context, id string) (fleet.Device, error) {
	var d fleet.Device
	return d, c.get(ctx, path("devices", id), &d)
}

// RegisterDevice registers a device before it connects. The same key again
// gives the device that has it.
func (c *Client) RegisterDevice(ctx context.Context, r fleet.Registration) (fleet.Device, error) {
	var d fleet.Device
	return d, c.post(ctx, "/devices", r, &d)
}

// PatchDevice changes labels or description.
func (c *Client) PatchDevice(ctx context.Context, id string, p fleet.DevicePatch) (fleet.Device, error) {
	var d fleet.Device
	return d, c.call(ctx, request{method: http.MethodPatch, path: path("devices", id), body: p}, &d)
}

// DeleteDevice forgets a device and its history.
func (c *Client) DeleteDevice(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: path("devices", id)}, nil)
}

// Approve lets a pending device receive commands.
func (c *Client) Approve(ctx context.Context, id string) (fleet.Device, error) {
	return c.credential(ctx, id, "approve")
}

// Revoke refuses the device's key for ever and ends its connection.
func (c *Client) Revoke(ctx context.Context, id string) (fleet.Device, error) {
	return c.credential(ctx, id, "revoke")
}

// Quarantine lets the device connect but sends it no commands.
func (c *Client) Quarantine(ctx context.Context, id string) (fleet.Device, error) {
	return c.credential(ctx, id, "quarantine")
}

// Release ends a quarantine.
func (c *Client) Release(ctx context.Context, id string) (fleet.Device, error) {
	return c.credential(ctx, id, "release")
}

func (c *Client) credential(ctx context.Context, id, action string) (fleet.Device, error) {
	var d fleet.Device
	return d, c.post(ctx, path("devices", id, action), nil, &d)
}

// History lists what a device went through, newest first; limit 0 is all.
func (c *Client) History(ctx context.Context, id string, limit int) (fleet.List[fleet.HistoryEntry], error) {
	return list[fleet.HistoryEntry](ctx, c, path("devices", id, "bundle-history"), nil, limit)
}

// configBody encodes a patch so that an empty metadata map, which clears all
// keys, differs from an absent one.
func configBody(p fleet.ConfigPatch) any {
	b := struct {
		fleet.ConfigPatch
		Metadata *map[string]any `json:"metadata,omitempty"`
	}{ConfigPatch: p}
	if p.Metadata != nil {
		b.Metadata = &p.Metadata
	}
	return b
}

// Config returns a device's desired configuration and what it made of it.
func (c *Client) Config(ctx context.Context, id string) (fleet.DeviceConfig, error) {
	var d fleet.DeviceConfig
	return d, c.get(ctx, path("devices", id, "config"), &d)
}

// SetConfig changes a device's configuration. A version above 0 must be the
// current one, else the error is CodeStale and nothing changes.
func (c *Client) SetConfig(ctx context.Context, id string, p fleet.ConfigPatch, version int64) (fleet.DeviceConfig, error) {
	r := request{method: http.MethodPut, path: path("devices", id, "config"), body: configBody(p)}
	if version > 0 {
		r.ifMatch = `"` + strconv.FormatInt(version, 10) + `"`
	}
	var d fleet.DeviceConfig
	return d, c.call(ctx, r, &d)
}

// SetConfigs changes the configuration of every device that selector chooses;
// the empty one chooses all.
func (c *Client) SetConfigs(ctx context.Context, selector string, p fleet.ConfigPatch) (fleet.ConfigChange, error) {
	var n fleet.ConfigChange
	return n, c.call(ctx, request{method: http.MethodPut, path: "/config", query: url.Values{"selector": {selector}}, body: configBody(p)}, &n)
}

// ConfigHistory lists a device's configuration versions, newest first.
func (c *Client) ConfigHistory(ctx context.Context, id string, limit int) (fleet.List[fleet.ConfigVersion], error) {
	return list[fleet.ConfigVersion](ctx, c, path("devices", id, "config", "history"), nil, limit)
}

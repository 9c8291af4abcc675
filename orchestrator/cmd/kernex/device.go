package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
)

type deviceCmd struct {
	List       deviceListCmd       `cmd:"" help:"List devices."`
	Get        deviceGetCmd        `cmd:"" help:"Show one device."`
	Label      deviceLabelCmd      `cmd:"" help:"Set labels (key=value) and remove them (key-)."`
	Config     deviceConfigCmd     `cmd:"" help:"Configuration: get, set, history."`
	History    deviceHistoryCmd    `cmd:"" help:"What was deployed to a device, newest first."`
	Logs       deviceLogsCmd       `cmd:"" help:"What a device's program says; -f goes on with it."`
	Restart    deviceRestartCmd    `cmd:"" help:"Start the program of devices anew."`
	Approve    deviceApproveCmd    `cmd:"" help:"Let pending devices receive commands; compare the fingerprint first."`
	Revoke     deviceRevokeCmd     `cmd:"" help:"Refuse the keys of devices for ever and disconnect them."`
	Quarantine deviceQuarantineCmd `cmd:"" help:"Send devices no commands until they are released."`
	Release    deviceReleaseCmd    `cmd:"" help:"End the quarantine of devices."`
	Delete     deviceDeleteCmd     `cmd:"" help:"Forget devices and their history."`
}

type deviceListCmd struct {
	Selector string `short:"l" help:"Devices by label, as site=berlin,ring!=canary."`
	Status   string `help:"online, offline, error, pending, quarantined or revoked."`
	Version  string `help:"Devices that run this bundle version."`
	Query    string `short:"q" help:"Part of an id, serial or description."`
	Limit    int    `default:"0" help:"The most to list; 0 is all."`
}

func (c *deviceListCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	p, err := api.Devices(ctx, client.DeviceFilter{Selector: c.Selector, Status: c.Status, BundleVersion: c.Version, Query: c.Query}, c.Limit)
	if err != nil {
		return err
	}
	return showList(a, p, "devices", []string{"ID", "STATUS", "BUNDLE", "VERSION", "HEARTBEAT", "CONFIG", "LABELS"}, func(d fleet.Device) []string {
		return []string{d.ID, d.Status, d.BundleName, d.BundleVersion, a.agoOr(d.LastHeartbeat, "never"), configText(d), d.Labels.String()}
	})
}

func checkLimit(n int) error {
	if n < 0 {
		return usagef("--limit %d: use 0 for all, or a number above 0", n)
	}
	return nil
}

// configText shows the desired version and, where the device does not have it
// yet, what it has.
func configText(d fleet.Device) string {
	switch {
	case d.ConfigReported != d.ConfigVersion:
		return fmt.Sprintf("v%d (device: v%d)", d.ConfigVersion, d.ConfigReported)
	case d.ConfigOutcome != "" && d.ConfigOutcome != "applied":
		return fmt.Sprintf("v%d %s", d.ConfigVersion, d.ConfigOutcome)
	}
	return fmt.Sprintf("v%d", d.ConfigVersion)
}

type deviceArg struct {
	Device string `arg:"" help:"Device id."`
}

type deviceGetCmd struct{ deviceArg }

func (c *deviceGetCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	d, err := api.Device(ctx, c.Device)
	if err != nil {
		return err
	}
	return a.showOne(d, a.deviceFields(d)...)
}

func (a *app) deviceFields(d fleet.Device) []field {
	return []field{
		{"id", d.ID},
		{"status", d.Status},
		{"health", d.Health},
		{"bundle", strings.TrimSpace(d.BundleName + " " + d.BundleVersion)},
		{"release", d.Release},
		{"config", configText(d)},
		{"last heartbeat", a.agoOr(d.LastHeartbeat, "never")},
		{"last seen", a.agoOr(d.LastSeen, "never")},
		{"load", loadText(d)},
		{"type", d.DeviceType},
		{"serial", d.Serial},
		{"labels", d.Labels.String()},
		{"description", d.Description},
		{"agent", strings.TrimSpace(d.AgentVersion + " " + d.OS + " " + d.Arch)},
		{"key", d.KeyType},
		{"fingerprint", d.Fingerprint},
		{"registered", a.ago(d.CreatedAt)},
	}
}

func loadText(d fleet.Device) string {
	var parts []string
	add := func(format string, v *float64) {
		if v != nil {
			parts = append(parts, fmt.Sprintf(format, *v))
		}
	}
	add("cpu %.0f %%", d.CPUPct)
	add("memory %.0f MB", d.MemoryMB)
	add("disk %.0f %%", d.DiskPct)
	return strings.Join(parts, ", ")
}

type deviceLabelCmd struct {
	deviceArg
	Labels []string `arg:"" help:"key=value sets, key- removes."`
}

func (c *deviceLabelCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	change, err := parseLabelChange(c.Labels)
	if err != nil {
		return err
	}
	d, err := api.Device(ctx, c.Device)
	if err != nil {
		return err
	}
	labels := fleet.Labels{}
	maps.Copy(labels, d.Labels)
	for k, v := range change {
		if v == nil {
			delete(labels, k)
		} else {
			labels[k] = *v
		}
	}
	if d, err = api.PatchDevice(ctx, c.Device, fleet.DevicePatch{Labels: &labels}); err != nil {
		return err
	}
	return a.say(d, "device %s: labels %s", d.ID, first(d.Labels.String(), "none"))
}

// parseLabelChange reads key=value and key- (nil).
func parseLabelChange(args []string) (map[string]*string, error) {
	change := map[string]*string{}
	for _, s := range args {
		k, v, ok := strings.Cut(s, "=")
		switch {
		case ok:
			if err := (fleet.Labels{k: v}).Validate(); err != nil {
				return nil, usagef("%s", fleet.ErrorMessage(err))
			}
			change[k] = &v
		case strings.HasSuffix(s, "-") && len(s) > 1:
			change[strings.TrimSuffix(s, "-")] = nil
		default:
			return nil, usagef("label %q: use key=value to set or key- to remove", s)
		}
	}
	return change, nil
}

type deviceHistoryCmd struct {
	deviceArg
	Limit int `default:"0" help:"The most to list; 0 is all."`
}

func (c *deviceHistoryCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	p, err := api.History(ctx, c.Device, c.Limit)
	if err != nil {
		return err
	}
	return showList(a, p, "entries", []string{"WHEN", "KIND", "BUNDLE", "VERSION", "STATUS", "TOOK", "DEPLOYMENT", "ERROR"}, func(h fleet.HistoryEntry) []string {
		status := h.Status
		if h.Late {
			status += " (late)"
		}
		return []string{a.ago(h.DeployedAt), h.Kind, h.BundleName, h.Version, status, fmt.Sprintf("%.1fs", h.DurationS), h.DeploymentID, h.Error}
	})
}

type devicesArg struct {
	Devices []string `arg:"" name:"device" help:"Device ids."`
}

type (
	deviceApproveCmd    struct{ devicesArg }
	deviceRevokeCmd     struct{ devicesArg }
	deviceQuarantineCmd struct{ devicesArg }
	deviceReleaseCmd    struct{ devicesArg }
	deviceDeleteCmd     struct{ devicesArg }
)

func (c *deviceApproveCmd) Run(ctx context.Context, a *app) error {
	return c.each(ctx, a, (*client.Client).Approve)
}

func (c *deviceRevokeCmd) Run(ctx context.Context, a *app) error {
	return c.each(ctx, a, (*client.Client).Revoke)
}

func (c *deviceQuarantineCmd) Run(ctx context.Context, a *app) error {
	return c.each(ctx, a, (*client.Client).Quarantine)
}

func (c *deviceReleaseCmd) Run(ctx context.Context, a *app) error {
	return c.each(ctx, a, (*client.Client).Release)
}

// each does one thing to every named device: one that fails is reported and
// does not keep the others from being done.
func (c devicesArg) each(ctx context.Context, a *app, do func(*client.Client, context.Context, string) (fleet.Device, error)) error {
	return a.forEach(ctx, c.Devices, func(api *client.Client, id string) error {
		d, err := do(api, ctx, id)
		if err != nil {
			return err
		}
		return a.say(d, "device %s: %s", d.ID, d.Status)
	})
}

func (c *deviceDeleteCmd) Run(ctx context.Context, a *app) error {
	return a.forEach(ctx, c.Devices, func(api *client.Client, id string) error {
		if err := api.DeleteDevice(ctx, id); err != nil {
			return err
		}
		return a.say(deleted{id}, "device %s: deleted", id)
	})
}

// deleted is the JSON for what the API answers without a body.
type deleted struct {
	ID string `json:"deleted"`
}

// forEach calls do with each id and fails in the end if any of them failed.
func (a *app) forEach(ctx context.Context, ids []string, do func(*client.Client, string) error) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	failed := false
	for _, id := range ids {
		err := do(api, id)
		switch {
		case err == nil:
			continue
		case len(ids) == 1 || ctx.Err() != nil || errors.Is(err, client.ErrUnreachable):
			return err
		}
		failed = true
		a.complain(err)
	}
	if failed {
		return errReported
	}
	return nil
}

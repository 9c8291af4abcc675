package main

import (
	"context"
	"time"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// waiting are the flags of every command that starts a deployment.
type waiting struct {
	NoWait  bool          `help:"Return as soon as the deployment is created."`
	Timeout time.Duration `placeholder:"DURATION" help:"Stop watching after this long, as 90s or 10m, and fail; the deployment goes on."`
}

// await shows a new deployment until it ends, or only says that it is there.
func (w waiting) await(ctx context.Context, a *app, api *client.Client, d fleet.Deployment) error {
	if w.Timeout < 0 {
		return usagef("--timeout %s: use a duration above 0", w.Timeout)
	}
	if w.NoWait {
		return a.say(d, "deployment %s created: %s; watch it with: kernex deployment get %s --watch", d.ID, subject(d), d.ID)
	}
	return a.follow(ctx, api, d, w.Timeout)
}

type deployCmd struct {
	Bundle      string        `required:"" placeholder:"NAME" help:"Name of the bundle."`
	Version     string        `required:"" placeholder:"V" help:"Version of the bundle."`
	Selector    *string       `short:"l" xor:"to" placeholder:"S" help:"To the devices with these labels, as site=berlin,ring!=canary; '' is the whole fleet."`
	Device      []string      `xor:"to" placeholder:"ID" help:"To these devices; may be repeated."`
	Description string        `help:"Why; kept with the deployment."`
	ExpireAfter time.Duration `placeholder:"DURATION" help:"Give up on devices that were not reached by then, 1m to 720h; default 24h."`
	waiting
}

func (c *deployCmd) Run(ctx context.Context, a *app) error {
	switch {
	case c.Selector == nil && len(c.Device) == 0:
		return usagef("deploy to what? Give --selector or --device (see kernex device list)")
	case c.Selector != nil:
		if _, err := fleet.ParseSelector(*c.Selector); err != nil {
			return usagef("%s", fleet.ErrorMessage(err))
		}
	}
	rollout := fleet.Rollout{TimeoutS: int(c.ExpireAfter.Seconds())}
	if err := rollout.Validate(); err != nil || c.ExpireAfter != 0 && rollout.TimeoutS == 0 {
		return usagef("--expire-after %s: use 1m to 720h", c.ExpireAfter)
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	a.warnOpen(ctx, api)
	d, err := api.Deploy(ctx, client.NewDeployment{
		Bundle: c.Bundle, BundleVersion: c.Version, Selector: c.Selector, TargetDevices: c.Device, Description: c.Description, Rollout: rollout,
	})
	if err != nil {
		return err
	}
	return c.await(ctx, a, api, d)
}

type rollbackCmd struct {
	Version  string   `required:"" placeholder:"V" help:"The version to return to; each device must have had it as a success."`
	Device   []string `xor:"to" placeholder:"ID" help:"The devices; may be repeated."`
	Selector *string  `short:"l" xor:"to" placeholder:"S" help:"The devices with these labels; '' is the whole fleet."`
	Bundle   string   `placeholder:"NAME" help:"Name of the bundle; default: whichever had that version on the device."`

	Description string `help:"Why; kept with the deployment."`
	waiting
}

func (c *rollbackCmd) Run(ctx context.Context, a *app) error {
	if c.Selector == nil && len(c.Device) == 0 {
		return usagef("roll back what? Give --selector or --device (see kernex device list)")
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	if c.Selector != nil {
		if c.Device, err = c.chosen(ctx, api); err != nil {
			return err
		}
	}
	d, err := api.RollbackDevices(ctx, client.NewRollback{Bundle: c.Bundle, BundleVersion: c.Version, TargetDeviceIDs: c.Device, Description: c.Description})
	if err != nil {
		return err
	}
	return c.await(ctx, a, api, d)
}

// chosen returns the ids of the devices that the selector chooses: the API takes
// a list, so that each device's history is checked.
func (c *rollbackCmd) chosen(ctx context.Context, api *client.Client) ([]string, error) {
	if _, err := fleet.ParseSelector(*c.Selector); err != nil {
		return nil, usagef("%s", fleet.ErrorMessage(err))
	}
	list, err := api.Devices(ctx, client.DeviceFilter{Selector: *c.Selector}, 0)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(list.Items))
	for i, d := range list.Items {
		ids[i] = d.ID
	}
	if len(ids) == 0 {
		return nil, fleet.Errorf(fleet.CodeInvalid, "no device has the labels %q", *c.Selector)
	}
	return ids, nil
}

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

type deploymentCmd struct {
	List     deploymentListCmd     `cmd:"" help:"List deployments, newest first."`
	Get      deploymentGetCmd      `cmd:"" help:"Show one deployment, or watch it until it ends."`
	Targets  deploymentTargetsCmd  `cmd:"" help:"Show where each device of a deployment stands."`
	Cancel   deploymentCancelCmd   `cmd:"" help:"End a deployment; devices that have not switched keep what they run."`
	Retry    deploymentRetryCmd    `cmd:"" help:"Try again on the devices where it did not succeed."`
	Rollback deploymentRollbackCmd `cmd:"" help:"Take a deployment's devices back to what each had before, or to a version."`
}

type deploymentListCmd struct {
	Status string `help:"pending, in_progress, success, failed or cancelled."`
	Limit  int    `default:"50" help:"The most to list; 0 is all."`
}

func (c *deploymentListCmd) Run(ctx context.Context, a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	p, err := api.Deployments(ctx, c.Status, c.Limit)
	if err != nil {
		return err
	}
	return showList(a, p, "deployments", []string{"ID", "KIND", "BUNDLE", "VERSION", "STATUS", "DEVICES", "CREATED", "REASON"}, func(d fleet.Deployment) []string {
		return []string{d.ID, d.Kind, d.Bundle, d.BundleVersion, string(d.Status), countsText(d), a.ago(d.CreatedAt), d.Reason}
	})
}

// subject says what a deployment brings to how many devices.
func subject(d fleet.Deployment) string {
	what := strings.TrimSpace(d.Bundle + " " + d.BundleVersion)
	if d.Kind == "rollback" {
		what = "rollback to " + first(what, "what each device had before")
	}
	if d.Total == 1 {
		return what + " to 1 device"
	}
	return fmt.Sprintf("%s to %d devices", what, d.Total)
}

// countsText lists the states that have devices, in the order of a
// deployment's life.
func countsText(d fleet.Deployment) string {
	var parts []string
	for _, s := range fleet.TargetStates {
		if n := d.Progress[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	return strings.Join(parts, ", ")
}

type deploymentArg struct {
	Deployment string `arg:"" help:"Deployment id."`
}

type deploymentGetCmd struct {
	deploymentArg
	Watch   bool          `short:"w" help:"Show live progress until it ends; exit 1 unless it succeeds."`
	Timeout time.Duration `placeholder:"DURATION" help:"With --watch: stop watching after this long and fail."`
}

func (c *deploymentGetCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	d, err := api.Deployment(ctx, c.Deployment)
	if err != nil {
		return err
	}
	if c.Watch {
		return waiting{Timeout: c.Timeout}.await(ctx, a, api, d)
	}
	return a.showOne(d,
		field{"id", d.ID},
		field{"what", subject(d)},
		field{"status", string(d.Status)},
		field{"reason", d.Reason},
		field{"devices", countsText(d)},
		field{"selector", d.Selector},
		field{"description", d.Description},
		field{"created", fmt.Sprintf("%s by %s", a.ago(d.CreatedAt), first(d.CreatedBy, "-"))},
		field{"started", a.agoOr(d.StartedAt, "not yet")},
		field{"finished", a.agoOr(d.FinishedAt, "not yet")},
		field{"unreached expire", a.ago(d.Deadline)})
}

type deploymentTargetsCmd struct {
	deploymentArg
	State string `help:"Only devices in this state."`
	Limit int    `default:"0" help:"The most to list; 0 is all."`
}

func (c *deploymentTargetsCmd) Run(ctx context.Context, a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	p, err := api.Targets(ctx, c.Deployment, fleet.TargetState(c.State), c.Limit)
	if err != nil {
		return err
	}
	return showList(a, p, "devices", []string{"DEVICE", "STATE", "STEP", "FROM", "TO", "TOOK", "ERROR"}, func(t fleet.Target) []string {
		took := ""
		if t.DurationMS > 0 {
			took = fmt.Sprintf("%.1fs", float64(t.DurationMS)/1000)
		}
		return []string{t.DeviceID, string(t.State), t.Step, t.PreviousVersion, t.BundleVersion, took, t.Error}
	})
}

type deploymentCancelCmd struct{ deploymentArg }

func (c *deploymentCancelCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	d, err := api.Cancel(ctx, c.Deployment)
	if err != nil {
		return err
	}
	return a.say(d, "deployment %s: %s, %s", d.ID, d.Status, countsText(d))
}

type deploymentRetryCmd struct {
	deploymentArg
	waiting
}

func (c *deploymentRetryCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	d, err := api.Retry(ctx, c.Deployment)
	if err != nil {
		return err
	}
	return c.await(ctx, a, api, d)
}

type deploymentRollbackCmd struct {
	deploymentArg
	To string `placeholder:"V" help:"The version to return to; default: what each device had before."`
	waiting
}

func (c *deploymentRollbackCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	d, err := api.RollbackDeployment(ctx, c.Deployment, c.To)
	if err != nil {
		return err
	}
	return c.await(ctx, a, api, d)
}

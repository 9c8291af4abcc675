package main

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
)

type enrollTokenCmd struct {
	Create enrollCreateCmd `cmd:"" help:"Make a claim token and print it, once."`
	List   enrollListCmd   `cmd:"" help:"List claim tokens, without their secrets."`
	Revoke enrollRevokeCmd `cmd:"" help:"End claim tokens; devices that used them stay."`
}

type enrollCreateCmd struct {
	Description   string            `help:"What it is for."`
	Label         map[string]string `short:"l" mapsep:"," placeholder:"KEY=VALUE" help:"Labels of the devices that enrol with it."`
	Serial        []string          `help:"Only devices with these serials may use it."`
	MaxUses       int               `default:"1" help:"How many devices may use it; 0 is without a limit."`
	Expires       string            `placeholder:"WHEN" help:"30d, 12h or 2027-01-31T00:00:00Z; without it never."`
	NoAutoApprove bool              `help:"Devices wait for kernex device approve."`
}

func (c *enrollCreateCmd) Run(ctx context.Context, a *app) error {
	expires, err := parseExpires(c.Expires, a.now())
	if err != nil {
		return err
	}
	labels := fleet.Labels{}
	maps.Copy(labels, c.Label)
	if err := labels.Validate(); err != nil {
		return usagef("%s", fleet.ErrorMessage(err))
	}
	if c.MaxUses < 0 {
		return usagef("--max-uses %d: use 0 for no limit, or a number above 0", c.MaxUses)
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	t, err := api.CreateEnrollmentToken(ctx, client.NewEnrollmentToken{
		Description: c.Description, Labels: labels, Serials: c.Serial, MaxUses: c.MaxUses, AutoApprove: !c.NoAutoApprove, ExpiresAt: expires,
	})
	if err != nil {
		return err
	}
	return a.showSecret(t, t.Token, fmt.Sprintf("claim token %s (%s): shown this once; use it as kernex-agent --enroll-token", t.ID, usesText(t.EnrollmentToken)))
}

func usesText(t fleet.EnrollmentToken) string {
	if t.MaxUses == 0 {
		return fmt.Sprintf("%d uses, no limit", t.Uses)
	}
	return fmt.Sprintf("%d of %d uses", t.Uses, t.MaxUses)
}

type enrollListCmd struct{}

func (c *enrollListCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	p, err := api.EnrollmentTokens(ctx, 0)
	if err != nil {
		return err
	}
	return showList(a, p, "claim tokens", []string{"ID", "USES", "APPROVE", "LABELS", "SERIALS", "EXPIRES", "STATUS", "DESCRIPTION"}, func(t fleet.EnrollmentToken) []string {
		approve := "by itself"
		if !t.AutoApprove {
			approve = "by an operator"
		}
		status := a.tokenStatus(t.RevokedAt, t.ExpiresAt)
		if status == "valid" && t.MaxUses > 0 && t.Uses >= t.MaxUses {
			status = "used up"
		}
		return []string{t.ID, usesText(t), approve, t.Labels.String(), strings.Join(t.Serials, ","), a.agoOr(t.ExpiresAt, "never"), status, t.Description}
	})
}

type enrollRevokeCmd struct{ tokensArg }

func (c *enrollRevokeCmd) Run(ctx context.Context, a *app) error {
	return a.forEach(ctx, c.Tokens, func(api *client.Client, id string) error {
		if err := api.RevokeEnrollmentToken(ctx, id); err != nil {
			return err
		}
		return a.say(deleted{id}, "claim token %s: revoked", id)
	})
}

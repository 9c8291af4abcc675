package main

import (
	"context"
	"encoding/json"

	"github.com/kernexhq/kernex/pkg/fleet"
)

type auditCmd struct {
	List auditListCmd `cmd:"" help:"List changes, newest first."`
}

type auditListCmd struct {
	Subject string `placeholder:"ID" help:"Changes of this device, deployment, bundle or token."`
	Actor   string `help:"Changes by this token, as the list shows it."`
	Action  string `help:"Changes of this kind, as deployment.create."`
	Limit   int    `default:"100" help:"The most to list; 0 is all."`
}

func (c *auditListCmd) Run(ctx context.Context, a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	p, err := api.Audit(ctx, fleet.AuditFilter{Actor: c.Actor, Action: c.Action, Subject: c.Subject}, c.Limit)
	if err != nil {
		return err
	}
	return showList(a, p, "changes", []string{"WHEN", "WHO", "WHAT", "SUBJECT", "FROM", "AFTER"}, func(e fleet.AuditEntry) []string {
		after := ""
		if b, err := json.Marshal(e.After); err == nil && e.After != nil {
			after = clip(string(b), 80)
		}
		return []string{a.ago(e.At), e.Actor, e.Action, e.Subject, e.Remote, after}
	})
}

// clip cuts s to at most n characters, the last of which then says so.
func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:max(n-1, 0)]) + "…"
}

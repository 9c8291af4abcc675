package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
)

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Make an API token and print it, once."`
	List   tokenListCmd   `cmd:"" help:"List API tokens, without their secrets."`
	Revoke tokenRevokeCmd `cmd:"" help:"End API tokens at once."`
}

type tokenCreateCmd struct {
	Name     string `required:"" help:"Who or what the token is for."`
	Role     string `required:"" enum:"viewer,operator,admin,monitor,service" help:"viewer, operator, admin; monitor (MQTT, reads fleet topics); service (an orchestrator's MQTT login)."`
	Selector string `short:"l" help:"Only devices with these labels; without it the whole fleet."`
	Expires  string `placeholder:"WHEN" help:"90d, 12h or 2027-01-31T00:00:00Z; without it never."`
}

func (c *tokenCreateCmd) Run(ctx context.Context, a *app) error {
	expires, err := parseExpires(c.Expires, a.now())
	if err != nil {
		return err
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	t, err := api.CreateToken(ctx, client.NewToken{Name: c.Name, Role: fleet.Role(c.Role), Selector: c.Selector, ExpiresAt: expires})
	if err != nil {
		return err
	}
	return a.showSecret(t, t.Token, fmt.Sprintf("API token %s (%s, %s): shown this once", t.ID, t.Name, t.Role))
}

// showSecret prints a new token alone on stdout, so that $(...) takes it, and
// what it is on stderr.
func (a *app) showSecret(v any, secret, note string) error {
	if a.json() {
		return a.printJSON(v)
	}
	fmt.Fprintln(a.stderr, printable(note))
	_, err := fmt.Fprintln(a.stdout, printable(secret))
	return err
}

// parseExpires reads a duration from now, with d for days, or a time.
func parseExpires(s string, now time.Time) (*time.Time, error) {
	if s == "" {
		return nil, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		var d time.Duration
		if days, ok := strings.CutSuffix(s, "d"); ok {
			var n int
			n, err = strconv.Atoi(days)
			d = time.Duration(min(n, 36500)) * 24 * time.Hour
		} else {
			d, err = time.ParseDuration(s)
		}
		t = now.Add(d)
	}
	if err != nil {
		return nil, usagef("--expires %q: want 90d, 12h or 2027-01-31T00:00:00Z", s)
	}
	if !t.After(now) {
		return nil, usagef("--expires %q is not in the future", s)
	}
	t = t.UTC().Truncate(time.Second)
	return &t, nil
}

type tokenListCmd struct{}

func (c *tokenListCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	p, err := api.Tokens(ctx, 0)
	if err != nil {
		return err
	}
	return showList(a, p, "tokens", []string{"ID", "NAME", "ROLE", "SELECTOR", "CREATED", "LAST USED", "EXPIRES", "STATUS"}, func(t fleet.APIToken) []string {
		return []string{t.ID, t.Name, string(t.Role), t.Selector, a.ago(t.CreatedAt), a.agoOr(t.LastUsedAt, "never"), a.agoOr(t.ExpiresAt, "never"), a.tokenStatus(t.RevokedAt, t.ExpiresAt)}
	})
}

func (a *app) tokenStatus(revoked, expires *time.Time) string {
	switch {
	case revoked != nil:
		return "revoked"
	case expires != nil && !expires.After(a.now()):
		return "expired"
	}
	return "valid"
}

type tokensArg struct {
	Tokens []string `arg:"" name:"token-id" help:"Ids of tokens."`
}

type tokenRevokeCmd struct{ tokensArg }

func (c *tokenRevokeCmd) Run(ctx context.Context, a *app) error {
	return a.forEach(ctx, c.Tokens, func(api *client.Client, id string) error {
		if err := api.RevokeToken(ctx, id); err != nil {
			return err
		}
		return a.say(deleted{id}, "token %s: revoked", id)
	})
}

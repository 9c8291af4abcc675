package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
)

type releaseKeyCmd struct {
	Add    releaseKeyAddCmd    `cmd:"" help:"Let a key sign bundles; the first one makes signatures required, for good."`
	List   releaseKeyListCmd   `cmd:"" help:"The trust mode and every release key."`
	Revoke releaseKeyRevokeCmd `cmd:"" help:"End a release key, for good."`
}

type releaseKeyAddCmd struct {
	File        string `arg:"" name:"pub-file" help:"The public key: the .pub file of keygen or of the minisign program."`
	Key         string `placeholder:"FILE" xor:"by" help:"Secret key of a release key that counts: signs the new one here."`
	Signature   string `placeholder:"FILE" xor:"by" help:"Or its signature over the file, as minisign -Sm PUB-FILE makes it."`
	Description string `help:"Whose it is; kept with the key."`
}

func (c *releaseKeyAddCmd) Run(ctx context.Context, a *app) error {
	_, file, err := releaseKey(c.File)
	if err != nil {
		return err
	}
	signature, err := c.signature(a, file)
	if err != nil {
		return err
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	k, err := api.AddReleaseKey(ctx, client.NewReleaseKey{PublicKey: file, Signature: signature, Description: c.Description})
	if err != nil {
		return err
	}
	return a.say(k, "release key %s counts now: trust mode is required, every device is being told", k.ID)
}

func (c *releaseKeyAddCmd) signature(a *app, file string) (string, error) {
	switch {
	case c.Signature != "":
		b, err := os.ReadFile(c.Signature)
		if err != nil {
			return "", fmt.Errorf("read signature: %w", err)
		}
		return string(b), nil
	case c.Key != "":
		key, err := a.signingKey(c.Key)
		if err != nil {
			return "", err
		}
		sig, err := key.Sign([]byte(file), a.now(), "kernex release key")
		return string(sig), err
	}
	return "", nil
}

type releaseKeyListCmd struct{}

func (c *releaseKeyListCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	keys, err := api.ReleaseKeys(ctx)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(keys)
	}
	fmt.Fprintln(a.stderr, "trust mode: "+printable(keys.Mode))
	t := newTable(a.stdout)
	t.row("ID", "STATUS", "SIGNED BY", "ADDED", "BY", "DESCRIPTION")
	for _, k := range keys.Items {
		status := "valid"
		if k.RevokedAt != nil {
			status = "revoked " + a.ago(*k.RevokedAt)
		}
		t.row(k.ID, status, first(k.SignedBy, "-"), a.ago(k.CreatedAt), k.CreatedBy, k.Description)
	}
	return t.flush()
}

type releaseKeyRevokeCmd struct {
	Keys []string `arg:"" name:"key-id" help:"Ids of release keys."`
}

func (c *releaseKeyRevokeCmd) Run(ctx context.Context, a *app) error {
	return a.forEach(ctx, c.Keys, func(api *client.Client, id string) error {
		id = strings.ToLower(id) // as minisign shows it
		if err := api.RevokeReleaseKey(ctx, id); err != nil {
			return err
		}
		return a.say(deleted{id}, "release key %s: revoked", id)
	})
}

// warnOpen says on stderr that the fleet asks for no signatures. What stands in
// the way of asking is left to the call that follows.
func (a *app) warnOpen(ctx context.Context, api *client.Client) {
	keys, err := api.ReleaseKeys(ctx)
	if err == nil && keys.Mode == fleet.TrustOpen {
		fmt.Fprintln(a.stderr, "kernex: warning: trust mode is open, devices install bundles without a signature; see kernex bundle keygen and kernex release-key add")
	}
}

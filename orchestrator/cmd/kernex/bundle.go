package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
)

type bundleCmd struct {
	Init   bundleInitCmd   `cmd:"" help:"Write the start of a bundle: manifest, scripts and what to change."`
	Build  bundleBuildCmd  `cmd:"" help:"Build a bundle from a directory, reproducibly, without uploading it."`
	Keygen bundleKeygenCmd `cmd:"" help:"Make a release key, in minisign's format."`
	Sign   bundleSignCmd   `cmd:"" help:"Sign a directory or a built file with a release key."`
	Push   bundlePushCmd   `cmd:"" help:"Build a directory, or check a built file, and upload it."`
	List   bundleListCmd   `cmd:"" help:"List bundles, newest first."`
	Get    bundleGetCmd    `cmd:"" help:"Show one bundle."`
	Verify bundleVerifyCmd `cmd:"" help:"Check the signature of a directory or file here, or let the server read the stored archive."`
	Delete bundleDeleteCmd `cmd:"" help:"Delete bundles that nothing uses."`
}

type bundleListCmd struct {
	Name  string `help:"Bundles of this name only."`
	Limit int    `default:"0" help:"The most to list; 0 is all."`
}

func (c *bundleListCmd) Run(ctx context.Context, a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	p, err := api.Bundles(ctx, c.Name, c.Limit)
	if err != nil {
		return err
	}
	return showList(a, p, "bundles", []string{"NAME", "VERSION", "SIZE", "RELEASE", "SIGNED BY", "UPLOADED", "ID"}, func(b fleet.Bundle) []string {
		return []string{b.Name, b.Version, bytesText(b.Size), shortDigest(b.Release), b.SignedBy, a.ago(b.CreatedAt), b.ID}
	})
}

// shortDigest is enough of a digest to tell releases apart by eye.
func shortDigest(s string) string { return s[:min(12, len(s))] }

type bundleArg struct {
	Bundle string `arg:"" help:"Bundle id, or NAME@VERSION."`
}

// find returns the bundle that arg names.
func findBundle(ctx context.Context, api *client.Client, arg string) (fleet.Bundle, error) {
	name, version, ok := strings.Cut(arg, "@")
	if !ok {
		return api.Bundle(ctx, arg)
	}
	p, err := api.Bundles(ctx, name, 0)
	if err != nil {
		return fleet.Bundle{}, err
	}
	var have []string
	for _, b := range p.Items {
		if b.Name == name && b.Version == version {
			return api.Bundle(ctx, b.ID)
		}
		have = append(have, b.Version)
	}
	return fleet.Bundle{}, fleet.Errorf(fleet.CodeNotFound, "no bundle %s of version %s; there is: %s", name, version, first(strings.Join(have, ", "), "none"))
}

type bundleGetCmd struct{ bundleArg }

func (c *bundleGetCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	b, err := findBundle(ctx, api, c.Bundle)
	if err != nil {
		return err
	}
	return a.showOne(b,
		field{"id", b.ID},
		field{"name", b.Name},
		field{"version", b.Version},
		field{"release", b.Release},
		field{"checksum", b.Checksum},
		field{"size", fmt.Sprintf("%s, %s extracted", bytesText(b.Size), bytesText(b.Expanded))},
		field{"signed by", first(b.SignedBy, "nobody")},
		field{"uploaded", fmt.Sprintf("%s by %s", a.ago(b.CreatedAt), first(b.CreatedBy, "-"))})
}

type bundleVerifyCmd struct {
	Bundle   string `arg:"" name:"bundle" help:"With --key a directory or a built file here; without it a bundle id, or NAME@VERSION, on the server."`
	Key      string `placeholder:"PUB" xor:"what" help:"Check that this release key has signed it: a .pub file, or its line."`
	Checksum string `placeholder:"SHA256" xor:"what" help:"What the stored archive must have; default: what it had when it was uploaded."`
}

func (c *bundleVerifyCmd) Run(ctx context.Context, a *app) error {
	if c.Key != "" {
		return c.verifyHere(a)
	}
	if st, err := os.Stat(c.Bundle); err == nil && (st.IsDir() || strings.ContainsAny(c.Bundle, "/.")) && !strings.Contains(c.Bundle, "@") {
		return usagef("%s is here and not on the server: name the release key that must have signed it, --key FILE.pub", c.Bundle)
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	b, err := findBundle(ctx, api, c.Bundle)
	if err != nil {
		return err
	}
	sum := first(c.Checksum, b.Checksum)
	valid, err := api.VerifyBundle(ctx, b.ID, sum)
	if err != nil {
		return err
	}
	if a.json() {
		v := struct {
			Valid bool `json:"valid"`
		}{valid}
		if err := a.printJSON(v); err != nil || valid {
			return err
		}
	}
	if !valid {
		return fmt.Errorf("%s %s: the stored archive does not have the checksum %s; delete it and push it again", b.Name, b.Version, sum)
	}
	return a.say(nil, "%s %s: the stored archive has the checksum %s", b.Name, b.Version, sum)
}

type bundleDeleteCmd struct {
	Bundles []string `arg:"" name:"bundle" help:"Bundle ids, or NAME@VERSION."`
}

func (c *bundleDeleteCmd) Run(ctx context.Context, a *app) error {
	return a.forEach(ctx, c.Bundles, func(api *client.Client, arg string) error {
		b, err := findBundle(ctx, api, arg)
		if err != nil {
			return err
		}
		if err := api.DeleteBundle(ctx, b.ID); err != nil {
			return err
		}
		return a.say(deleted{b.ID}, "bundle %s %s: deleted", b.Name, b.Version)
	})
}

package main

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kernexhq/kernex/pkg/bundle"
)

//go:embed scaffold
var scaffold embed.FS

// scaffoldFiles are what init writes, with their permissions.
var scaffoldFiles = []struct {
	name string
	perm os.FileMode
}{{bundle.ManifestName, 0o644}, {"deploy.sh", 0o755}, {"health.sh", 0o755}, {"README.md", 0o644}}

type bundleInitCmd struct {
	Dir  string `arg:"" help:"Directory to make or to add to; nothing in it is overwritten."`
	Name string `help:"Name of the bundle; default: the directory's."`
}

var notInName = regexp.MustCompile(`[^a-z0-9._-]+`)

func (c *bundleInitCmd) Run(a *app) error {
	name := c.Name
	if name == "" {
		abs, err := filepath.Abs(c.Dir)
		if err != nil {
			return fmt.Errorf("find %s: %w", c.Dir, err)
		}
		name = strings.Trim(notInName.ReplaceAllString(strings.ToLower(filepath.Base(abs)), "-"), "-._")
	}
	if !bundle.ValidName(name) {
		return usagef("bundle name %q: use 1-63 of a-z, 0-9, '.', '_' and '-', a letter or digit first (--name)", name)
	}
	for _, f := range scaffoldFiles { // all or nothing
		if _, err := os.Lstat(filepath.Join(c.Dir, f.name)); err == nil {
			return fmt.Errorf("%s is already there; nothing was written", filepath.Join(c.Dir, f.name))
		}
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return fmt.Errorf("make bundle directory: %w", err)
	}
	for _, f := range scaffoldFiles {
		text, err := scaffold.ReadFile("scaffold/" + f.name)
		if err == nil {
			err = writeNew(filepath.Join(c.Dir, f.name), strings.ReplaceAll(string(text), "{{name}}", name), f.perm)
		}
		if err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
	}
	v := struct {
		Dir  string `json:"dir"`
		Name string `json:"name"`
	}{c.Dir, name}
	return a.say(v, "bundle %s is in %s; README.md there says what to change, then: kernex bundle push %s", name, c.Dir, c.Dir)
}

func writeNew(file, text string, perm os.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

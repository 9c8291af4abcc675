package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kernexhq/kernex/pkg/bundle"
)

type bundleSignCmd struct {
	Source string `arg:"" name:"dir-or-file" help:"Directory with manifest.json, or a built bundle, which is rewritten with the signature in it."`
	Key    string `required:"" placeholder:"FILE" help:"Secret key of keygen or of the minisign program; its password is asked for, or taken from $$KERNEX_KEY_PASSWORD."`
}

func (c *bundleSignCmd) Run(a *app) error {
	st, err := os.Stat(c.Source)
	if err != nil {
		return fmt.Errorf("open bundle: %w", err)
	}
	key, err := a.signingKey(c.Key)
	if err != nil {
		return err
	}
	var release, where string
	if st.IsDir() {
		release, where, err = c.signDir(a, key)
	} else {
		release, where, err = c.signArchive(a, key)
	}
	if err != nil {
		return err
	}
	v := struct {
		File    string `json:"file"`
		Release string `json:"release"`
		Key     string `json:"key"`
	}{where, release, key.Public().ID()}
	return a.say(v, "signed release %s with key %s: %s", shortDigest(release), v.Key, where)
}

// signDir signs the manifest as the build will fill it in. A file that changes
// afterwards makes another release, which this signature is not for.
func (c *bundleSignCmd) signDir(a *app, key bundle.SigningKey) (release, file string, err error) {
	manifest, err := bundle.FilledManifest(c.Source)
	if err != nil {
		return "", "", err
	}
	sig, err := key.SignManifest(manifest, a.now())
	if err != nil {
		return "", "", err
	}
	file = filepath.Join(c.Source, bundle.SignatureName)
	return bundle.ReleaseID(manifest), file, writeWhole(file, func(w io.Writer) error {
		_, err := w.Write(sig)
		return err
	})
}

func (c *bundleSignCmd) signArchive(a *app, key bundle.SigningKey) (release, file string, err error) {
	f, err := os.Open(c.Source)
	if err != nil {
		return "", "", fmt.Errorf("open bundle: %w", err)
	}
	defer f.Close()
	info, err := bundle.Verify(f, noLimit)
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", c.Source, err)
	}
	sig, err := key.SignManifest(info.ManifestBytes, a.now())
	if err != nil {
		return "", "", err
	}
	return info.Release, c.Source, writeWhole(c.Source, func(w io.Writer) error {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		_, err := bundle.ReplaceSignature(f, w, sig, noLimit)
		return err
	})
}

// writeWhole fills a file that nobody sees before it is complete.
func writeWhole(file string, fill func(io.Writer) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".kernex-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	err = fill(tmp)
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return os.Rename(tmp.Name(), file)
}

// verifyHere checks a bundle on this machine against a release key.
func (c *bundleVerifyCmd) verifyHere(a *app) error {
	key, _, err := releaseKey(c.Key)
	if err != nil {
		return err
	}
	st, err := os.Stat(c.Bundle)
	if err != nil {
		return fmt.Errorf("open bundle: %w", err)
	}
	var info *bundle.Info
	if st.IsDir() {
		info, err = builtInfo(c.Bundle)
	} else {
		info, err = archiveInfo(c.Bundle)
	}
	if err != nil {
		return err
	}
	if _, err := bundle.VerifySignature(info.ManifestBytes, info.Signature, []string{key.String()}); err != nil {
		return fmt.Errorf("%s: %w", c.Bundle, err)
	}
	v := struct {
		Valid   bool   `json:"valid"`
		Release string `json:"release"`
		Key     string `json:"key"`
	}{true, info.Release, key.ID()}
	return a.say(v, "%s: %s %s, release %s, signed by key %s", c.Bundle, info.Manifest.Name, info.Manifest.Version, shortDigest(info.Release), v.Key)
}

// builtInfo describes what a directory would be as a bundle; one that is
// extracted, with files in its manifest, is checked as it stands.
func builtInfo(dir string) (*bundle.Info, error) {
	if info, err := bundle.Check(dir); err == nil {
		return info, nil
	}
	return bundle.Build(dir, io.Discard, noLimit)
}

func archiveInfo(file string) (*bundle.Info, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	defer f.Close()
	info, err := bundle.Verify(f, noLimit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return info, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
)

// noLimit leaves the size limit to the server, which knows its own.
var noLimit = bundle.Limits{MaxBytes: 1 << 40}

type bundleBuildCmd struct {
	Dir   string `arg:"" type:"existingdir" help:"Directory with manifest.json."`
	File  string `short:"f" placeholder:"FILE" help:"Where to write; default NAME-VERSION.tar.gz here."`
	Force bool   `help:"Overwrite the file."`
}

func (c *bundleBuildCmd) Run(a *app) error {
	where := "."
	if c.File != "" {
		where = filepath.Dir(c.File)
	}
	tmp, info, err := buildTemp(c.Dir, where)
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already when it was renamed
	if err := errors.Join(tmp.Chmod(0o644), tmp.Close()); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	file := c.File
	if file == "" {
		file = fmt.Sprintf("%s-%s.tar.gz", info.Manifest.Name, info.Manifest.Version)
	}
	if _, err := os.Lstat(file); err == nil && !c.Force {
		return fmt.Errorf("%s is already there; --force overwrites it", file)
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	v := struct {
		File     string `json:"file"`
		Name     string `json:"name"`
		Version  string `json:"version"`
		Release  string `json:"release"`
		Checksum string `json:"checksum_sha256"`
		Size     int64  `json:"size"`
	}{file, info.Manifest.Name, info.Manifest.Version, info.Release, info.Checksum, info.Size}
	return a.say(v, "built %s: %s %s, %s, release %s", file, v.Name, v.Version, bytesText(v.Size), shortDigest(v.Release))
}

// buildTemp builds dir into a new file in the directory where; the caller
// closes and removes it.
func buildTemp(dir, where string) (*os.File, *bundle.Info, error) {
	tmp, err := os.CreateTemp(where, ".kernex-*.tar.gz")
	if err != nil {
		return nil, nil, fmt.Errorf("build bundle: %w", err)
	}
	info, err := bundle.Build(dir, tmp, noLimit)
	if err != nil {
		return nil, nil, errors.Join(err, tmp.Close(), os.Remove(tmp.Name()))
	}
	return tmp, info, nil
}

type bundlePushCmd struct {
	Source string `arg:"" name:"dir-or-file" help:"Directory with manifest.json, or a built bundle."`
}

func (c *bundlePushCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	file, info, err := c.open()
	if err != nil {
		return err
	}
	defer file.Close()
	a.warnOpen(ctx, api)
	name := fmt.Sprintf("%s-%s.tar.gz", info.Manifest.Name, info.Manifest.Version)
	bar := a.uploadBar(info.Size)
	b, err := api.UploadBundle(ctx, name, file, info.Size, bar.sent)
	bar.clear()
	if err != nil {
		return err
	}
	return a.say(b, "pushed %s %s: %s, release %s, id %s", b.Name, b.Version, bytesText(b.Size), shortDigest(b.Release), b.ID)
}

// open returns the archive, checked, with nothing left behind on the disk: a
// built one has no name any more.
func (c *bundlePushCmd) open() (*os.File, *bundle.Info, error) {
	st, err := os.Stat(c.Source)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("open bundle: %w", err)
	case st.IsDir():
		f, info, err := buildTemp(c.Source, "")
		if err != nil {
			return nil, nil, err
		}
		if err := os.Remove(f.Name()); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("build bundle: %w", err), f.Close())
		}
		return f, info, nil
	case !st.Mode().IsRegular():
		return nil, nil, usagef("%s is neither a directory nor a file", c.Source)
	}
	f, err := os.Open(c.Source)
	if err != nil {
		return nil, nil, fmt.Errorf("open bundle: %w", err)
	}
	info, err := bundle.Verify(f, noLimit)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", c.Source, err), f.Close())
	}
	return f, info, nil
}

// bar is one line on a terminal that is written over; elsewhere it is nothing.
// The connection may still read the file when the answer is there, so sent may
// come after clear.
type bar struct {
	w    io.Writer // nil: no terminal
	size int64

	mu    sync.Mutex
	drawn time.Time
	done  bool
}

func (a *app) uploadBar(size int64) *bar {
	if _, ok := a.terminal(a.stderr); !ok {
		return &bar{}
	}
	return &bar{w: a.stderr, size: size}
}

// sent draws at most ten times a second.
func (b *bar) sent(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.w == nil || b.done || time.Since(b.drawn) < 100*time.Millisecond {
		return
	}
	b.drawn = time.Now()
	fmt.Fprintf(b.w, "\r\x1b[Kuploading %s of %s, %d %%", bytesText(n), bytesText(b.size), 100*n/max(b.size, 1))
}

func (b *bar) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = true
	if b.w != nil {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}

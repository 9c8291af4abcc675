package bundle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// FS is where Extract writes: a directory that is empty and that nobody else
// writes to. Names are relative with forward slashes and have been checked.
// The agent passes its own, so that a test can fail each call.
type FS interface {
	// MkdirAll creates the directory and its parents where they are missing.
	MkdirAll(name string, perm fs.FileMode) error
	// Create makes a file that must not exist yet (O_EXCL), with exactly these
	// permissions whatever the umask.
	Create(name string, perm fs.FileMode) (SyncWriter, error)
	// SyncDir makes the entries of a directory durable; "." is the top.
	SyncDir(name string) error
}

// SyncWriter is a file being written. Sync makes its content durable.
type SyncWriter interface {
	io.WriteCloser
	Sync() error
}

// Extract writes a bundle into dst with the same checks as Verify, every file
// and directory fsynced. After an error dst holds part of a bundle, which the
// caller removes; nothing in it may be used.
func Extract(r io.Reader, dst FS, limits Limits) (*Info, error) {
	return readArchive(r, limits, &writer{fs: dst, dirs: map[string]bool{".": true}})
}

// writer puts files into an FS. It keeps its first error, so that a full disk
// is not reported as a bad bundle.
type writer struct {
	fs   FS
	dirs map[string]bool // created, or the top
	err  error
}

func (w *writer) save(name string, perm fs.FileMode, write func(io.Writer) error) (err error) {
	if err := w.mkdir(path.Dir(name)); err != nil {
		return err
	}
	f, err := w.fs.Create(name, perm)
	if err != nil {
		return w.failed("create", name, err)
	}
	if err := write(recording{w, f, name}); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(w.failed("sync", name, err), f.Close())
	}
	if err := f.Close(); err != nil {
		return w.failed("close", name, err)
	}
	return nil
}

func (w *writer) mkdir(dir string) error {
	if w.dirs[dir] {
		return nil
	}
	if err := w.fs.MkdirAll(dir, 0o755); err != nil {
		return w.failed("create directory", dir, err)
	}
	for ; !w.dirs[dir]; dir = path.Dir(dir) {
		w.dirs[dir] = true
	}
	return nil
}

// finish makes the directories durable, children before their parents.
func (w *writer) finish() error {
	dirs := make([]string, 0, len(w.dirs))
	for dir := range w.dirs {
		dirs = append(dirs, dir)
	}
	depth := func(dir string) int {
		if dir == "." {
			return -1
		}
		return strings.Count(dir, "/")
	}
	slices.SortFunc(dirs, func(a, b string) int {
		if d := depth(b) - depth(a); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for _, dir := range dirs {
		if err := w.fs.SyncDir(dir); err != nil {
			return w.failed("sync directory", dir, err)
		}
	}
	return nil
}

func (w *writer) failed(what, name string, err error) error {
	if w.err == nil {
		w.err = fmt.Errorf("%s %s: %w", what, name, err)
	}
	return w.err
}

// recording tells a failed write from a failed read in a copy.
type recording struct {
	w    *writer
	f    SyncWriter
	name string
}

func (r recording) Write(p []byte) (int, error) {
	n, err := r.f.Write(p)
	if err != nil {
		return n, r.w.failed("write", r.name, err)
	}
	return n, nil
}

// RootFS is an FS in a directory that no path can leave, symbolic links included.
type RootFS struct{ Root *os.Root }

// MkdirAll implements FS.
func (r RootFS) MkdirAll(name string, perm fs.FileMode) error { return r.Root.MkdirAll(name, perm) }

// Create implements FS.
func (r RootFS) Create(name string, perm fs.FileMode) (SyncWriter, error) {
	f, err := r.Root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(perm); err != nil { // the umask may have taken bits away
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// SyncDir implements FS.
func (r RootFS) SyncDir(name string) error {
	f, err := r.Root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

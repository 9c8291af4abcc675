// Package durable is the file system as a crash-safe program uses it: each call
// has a name, so that a test can fail exactly that one, and the composed calls
// (WriteFile, Rename, Switch, MkdirAll) have reached the disk when they return.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Kind is what a call does to the disk.
type Kind string

// The kinds. Each is one system call, so that a fault can fall between any two.
const (
	Open     Kind = "open" // creates or truncates
	Write    Kind = "write"
	Truncate Kind = "truncate"
	Sync     Kind = "sync" // of a file's content
	Close    Kind = "close"
	Rename   Kind = "rename"
	Symlink  Kind = "symlink"
	Remove   Kind = "remove"
	Mkdir    Kind = "mkdir"
	Chmod    Kind = "chmod"
	SyncDir  Kind = "syncdir" // of a directory's entries
)

// Call is one system call about to happen or just done.
type Call struct {
	Op   string // the caller's name for the whole operation
	Kind Kind
	Path string
	To   string // new path of a rename, content of a symlink
	Data []byte // of a write; valid during the hook only
	Size int64  // of a truncate
}

// Hook sees each call before and after it is done. An error before means that
// the call is not done; in both cases it is what the caller gets.
type Hook func(c Call, before bool) error

// FS makes the calls. Its zero value is ready for use; production never sets
// Hook and pays one comparison a call for it.
type FS struct{ Hook Hook }

func (f *FS) do(c Call, call func() error) error {
	if f.Hook == nil {
		return call()
	}
	if err := f.Hook(c, true); err != nil {
		return err
	}
	if err := call(); err != nil {
		return err
	}
	return f.Hook(c, false)
}

// tmpName is where a new version of path is prepared. The name is fixed: what a
// crash leaves is overwritten by the next attempt, and a path has one writer.
func tmpName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
}

// WriteFile replaces path with data and exactly perm: temporary file, fsync,
// rename, fsync of the directory. After an error, or a crash at any point, path
// holds its old content or the new one, whole.
func (f *FS) WriteFile(op, path string, data []byte, perm fs.FileMode) (err error) {
	tmp := tmpName(path)
	defer func() {
		if err != nil { // best effort: the next attempt truncates it anyway
			_ = f.Remove(op, tmp)
		}
	}()
	file, err := f.OpenFile(op, tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if _, err := file.Write(data); err != nil {
		return errors.Join(err, file.Close())
	}
	if err := file.Sync(); err != nil {
		return errors.Join(err, file.Close())
	}
	if err := file.Close(); err != nil {
		return err
	}
	return f.Rename(op, tmp, path)
}

// Rename moves from to to, replacing it, and syncs the directories concerned.
// After an error of the sync the move may or may not survive a power cut.
func (f *FS) Rename(op, from, to string) error {
	err := f.do(Call{Op: op, Kind: Rename, Path: from, To: to}, func() error { return os.Rename(from, to) })
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := f.SyncDir(op, filepath.Dir(to)); err != nil {
		return err
	}
	if filepath.Dir(from) == filepath.Dir(to) {
		return nil
	}
	return f.SyncDir(op, filepath.Dir(from))
}

// Switch makes link a symbolic link to target in one step: whoever resolves it
// sees the old target or the new one.
func (f *FS) Switch(op, link, target string) error {
	tmp := tmpName(link)
	if err := f.Remove(op, tmp); err != nil {
		return err
	}
	err := f.do(Call{Op: op, Kind: Symlink, Path: tmp, To: target}, func() error { return os.Symlink(target, tmp) })
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return f.Rename(op, tmp, link)
}

// Remove deletes a file, link or empty directory; one that is not there is
// fine. It is not synced: a path that a power cut brings back is removed again.
func (f *FS) Remove(op, path string) error {
	err := f.do(Call{Op: op, Kind: Remove, Path: path}, func() error {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// RemoveAll deletes path and all below it as one call; like Remove it is not
// synced, and after a crash a part of the tree may be left.
func (f *FS) RemoveAll(op, path string) error {
	err := f.do(Call{Op: op, Kind: Remove, Path: path}, func() error { return os.RemoveAll(path) })
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// MkdirAll makes path and its missing parents with exactly perm and syncs the
// directory that holds each new one.
func (f *FS) MkdirAll(op, path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	if err == nil {
		if info.IsDir() {
			return nil
		}
		return fmt.Errorf("%s: mkdir %s: %w", op, path, syscall.ENOTDIR)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := f.MkdirAll(op, filepath.Dir(path), perm); err != nil {
		return err
	}
	err = f.do(Call{Op: op, Kind: Mkdir, Path: path}, func() error {
		if err := os.Mkdir(path, perm); !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := f.Chmod(op, path, perm); err != nil {
		return err
	}
	return f.SyncDir(op, filepath.Dir(path))
}

// Chmod sets the permissions of path whatever the umask.
func (f *FS) Chmod(op, path string, perm fs.FileMode) error {
	err := f.do(Call{Op: op, Kind: Chmod, Path: path}, func() error { return os.Chmod(path, perm) })
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

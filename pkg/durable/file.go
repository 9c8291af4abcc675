package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// File is a file opened for writing through an FS. Nothing written is durable
// before Sync.
type File struct {
	fs   *FS
	op   string
	file *os.File
}

// OpenFile opens path for writing as os.OpenFile does, without following a link
// in its place; a file that it creates gets exactly perm whatever the umask. A
// new file's directory entry is not durable until SyncDir.
func (f *FS) OpenFile(op, path string, flag int, perm fs.FileMode) (*File, error) {
	var file *os.File
	err := f.do(Call{Op: op, Kind: Open, Path: path}, func() (err error) {
		file, err = os.OpenFile(path, flag|syscall.O_NOFOLLOW, perm)
		if err == nil && flag&os.O_CREATE != 0 {
			err = file.Chmod(perm)
		}
		return err
	})
	if err != nil {
		if file != nil { // opened, and then a fault
			err = errors.Join(err, file.Close())
		}
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return &File{fs: f, op: op, file: file}, nil
}

// Create makes a file that must not exist yet.
func (f *FS) Create(op, path string, perm fs.FileMode) (*File, error) {
	return f.OpenFile(op, path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
}

// OpenAppend opens path for appending and makes it when it is missing.
func (f *FS) OpenAppend(op, path string, perm fs.FileMode) (*File, error) {
	return f.OpenFile(op, path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, perm)
}

// Name returns the path that the file was opened by.
func (f *File) Name() string { return f.file.Name() }

// Write implements io.Writer.
func (f *File) Write(p []byte) (n int, err error) {
	err = f.fs.do(Call{Op: f.op, Kind: Write, Path: f.Name(), Data: p}, func() (err error) {
		n, err = f.file.Write(p)
		return err
	})
	if err != nil {
		return n, fmt.Errorf("%s: %w", f.op, err)
	}
	return n, nil
}

// Truncate cuts the file to size bytes.
func (f *File) Truncate(size int64) error {
	err := f.fs.do(Call{Op: f.op, Kind: Truncate, Path: f.Name(), Size: size}, func() error { return f.file.Truncate(size) })
	if err != nil {
		return fmt.Errorf("%s: %w", f.op, err)
	}
	return nil
}

// Sync makes the content durable. After an error the kernel may have dropped
// what it could not write: the content is unknown until it is read again.
func (f *File) Sync() error {
	err := f.fs.do(Call{Op: f.op, Kind: Sync, Path: f.Name()}, f.file.Sync)
	if err != nil {
		return fmt.Errorf("%s: %w", f.op, err)
	}
	return nil
}

// Close closes the file, whatever a hook says, and does not sync it.
func (f *File) Close() error {
	err := f.fs.do(Call{Op: f.op, Kind: Close, Path: f.Name()}, f.file.Close)
	if err != nil {
		if cerr := f.file.Close(); cerr != nil && !errors.Is(cerr, os.ErrClosed) {
			err = errors.Join(err, cerr)
		}
		return fmt.Errorf("%s: %w", f.op, err)
	}
	return nil
}

// SyncDir makes the entries of a directory durable.
func (f *FS) SyncDir(op, dir string) error {
	return f.sync(op, SyncDir, dir)
}

// SyncTree makes every file and directory below root, and root, durable,
// children before their parents. The entry of root itself is not.
func (f *FS) SyncTree(op, root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		switch {
		case e.IsDir():
			err = f.SyncTree(op, path)
		case e.Type().IsRegular():
			err = f.sync(op, Sync, path)
		}
		if err != nil {
			return err
		}
	}
	return f.SyncDir(op, root)
}

func (f *FS) sync(op string, kind Kind, path string) error {
	err := f.do(Call{Op: op, Kind: kind, Path: path}, func() error {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(file.Sync(), file.Close())
	})
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

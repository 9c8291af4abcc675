package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kernexhq/kernex/agent/journal"
	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/secretfile"
)

// lockWait is how long the lock of the state directory may take.
const lockWait = time.Second

// stateDir is the locked state directory.
type stateDir struct {
	dir  string
	fs   *durable.FS
	lock *os.File
}

func (s stateDir) keyPath() string    { return filepath.Join(s.dir, "identity", "key.pem") }
func (s stateDir) certPath() string   { return filepath.Join(s.dir, "identity", "cert.pem") }
func (s stateDir) configPath() string { return filepath.Join(s.dir, "device_config.json") }

// openState makes the directory, takes its lock and refuses secrets that others
// may read.
func openState(f *durable.FS, dir string) (stateDir, error) {
	s := stateDir{dir: dir, fs: f}
	if err := f.MkdirAll("state-dir", dir, 0o700); err != nil {
		return s, fmt.Errorf("make the state directory: %w", err)
	}
	if err := f.Chmod("state-dir", dir, 0o700); err != nil {
		return s, fmt.Errorf("close the state directory to others: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return s, fmt.Errorf("open the lock file: %w", err)
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	// An agent that has just died may leave a child between fork and exec, which
	// holds the lock for some milliseconds more.
	for end := time.Now().Add(lockWait); err != nil && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		_ = lock.Close()
		return s, fmt.Errorf("another agent uses the state directory %s (%w)", dir, err)
	}
	s.lock = lock
	for _, path := range []string{s.keyPath(), s.configPath(), journal.Path(dir)} {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && (!info.Mode().IsRegular() || info.Mode().Perm()&0o177 != 0) {
			err = fmt.Errorf("%s has mode %v, it must be a file of mode 0600; if nobody else had access, run: chmod 600 %s", path, info.Mode(), path)
		}
		if err != nil {
			return s, errors.Join(fmt.Errorf("check the secret files: %w", err), s.close())
		}
	}
	return s, nil
}

func (s stateDir) close() error { return s.lock.Close() }

// key reads the device key, and makes it when the device is new. A device that
// has enrolled and lost its key is refused: it would become a second one.
func (s stateDir) key(kind string, enrolled bool) (identity.PrivateKey, error) {
	text, err := secretfile.Read(s.keyPath())
	if err == nil {
		key, err := identity.ParsePrivateKeyPEM([]byte(text))
		if err != nil {
			return key, fmt.Errorf("%s: %w", s.keyPath(), err)
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return identity.PrivateKey{}, err
	}
	if enrolled {
		return identity.PrivateKey{}, fmt.Errorf("%s is missing, but this device has enrolled: restore the key, or remove %s to enrol as a new device", s.keyPath(), s.dir)
	}
	key, err := identity.Generate(kind)
	if err != nil {
		return key, err
	}
	pem, err := key.PEM()
	if err != nil {
		return key, err
	}
	if err := s.fs.MkdirAll("identity", filepath.Dir(s.keyPath()), 0o700); err != nil {
		return key, err
	}
	return key, s.fs.WriteFile("identity", s.keyPath(), pem, 0o600)
}

// Package secretfile reads and makes files that hold a secret: mode 0600, or
// the program that needs it does not start.
package secretfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// MaxSize bounds a secret file, in bytes; the largest, an RSA-4096 key in PEM,
// has 3.3 KB.
const MaxSize = 64 << 10

// Read returns the file's content without surrounding white space. A file that
// its group or others may read is refused by name, as is an empty one; only a
// credential that systemd hands over may have mode 0440.
func Read(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open secret file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return "", fmt.Errorf("read mode of secret file %s: %w", path, err)
	case !info.Mode().IsRegular() || info.Size() > MaxSize:
		return "", fmt.Errorf("secret file %s is not a regular file of at most %d bytes", path, MaxSize)
	case info.Mode().Perm()&foreign(path) != 0:
		return "", fmt.Errorf("secret file %s has mode %04o, others can read it; run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	b := make([]byte, info.Size())
	n, err := f.Read(b)
	if err != nil && info.Size() > 0 {
		return "", fmt.Errorf("read secret file: %w", err)
	}
	s := strings.TrimSpace(string(b[:n]))
	if s == "" {
		return "", fmt.Errorf("secret file %s is empty", path)
	}
	return s, nil
}

// foreign is the permissions that a secret file must not have. systemd gives the
// files below $CREDENTIALS_DIRECTORY to a service's user by an access list, whose
// mask shows as the group's right to read; nobody else reaches that folder.
func foreign(path string) fs.FileMode {
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && filepath.Dir(path) == filepath.Clean(dir) {
		return 0o037
	}
	return 0o077
}

// Write makes the file with the secret and a newline, mode 0600, durably: after
// a power cut it is either whole or absent.
func Write(path, secret string) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("make secret file: %w", err)
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	_, err = tmp.WriteString(secret + "\n")
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write secret file %s: %w", path, err)
	}
	return nil
}

// ReadOrMake reads the file or, when it does not exist, fills it with what
// generate returns. made tells which.
func ReadOrMake(path string, generate func() (string, error)) (secret string, made bool, err error) {
	secret, err = Read(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, false, err
	}
	if secret, err = generate(); err != nil {
		return "", false, err
	}
	return secret, true, Write(path, secret)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

package pgcluster

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/rs/zerolog"
)

// fallbackDir holds clusters whose own folder the Postgres user cannot reach.
const fallbackDir = "/var/lib/kernex"

// place decides where the cluster lives: dir itself, or a folder below fallback
// when a parent of dir is closed to the account.
func place(who account, dir, fallback string, log zerolog.Logger) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolve the data folder: %w", err)
	}
	if err := makeParents(dir); err != nil {
		return "", err
	}
	// The parent is resolved so that what we check, chown and rename is what
	// Postgres will see; the folder itself may not exist yet.
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", fmt.Errorf("resolve the data folder: %w", err)
	}
	dir = filepath.Join(parent, filepath.Base(dir))
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}

	sum := sha256.Sum256([]byte(dir))
	other := filepath.Join(fallback, hex.EncodeToString(sum[:4]))
	closed := who.barrier(dir)
	here, there := initialised(dir), initialised(other)
	switch {
	case here && closed != "":
		return "", fmt.Errorf("user %s cannot reach the existing cluster in %s: open %s to it (chmod o+x)", who.name, dir, closed)
	case here:
		return dir, nil
	case there:
		// Moved earlier; an opened parent must not make the data vanish.
		log.Info().Str("data_dir", dir).Str("cluster_dir", other).Msg("the Postgres cluster of this folder lives elsewhere, as at its first start")
	case closed == "":
		return dir, nil
	default:
		log.Warn().Str("data_dir", dir).Str("closed_parent", closed).Str("user", who.name).Str("cluster_dir", other).
			Msg("the Postgres user cannot pass through a parent of the data folder, so the cluster is put elsewhere")
	}
	if err := makeParents(other); err != nil {
		return "", err
	}
	if closed := who.barrier(other); closed != "" {
		return "", fmt.Errorf("user %s can reach neither %s nor %s (closed at %s)", who.name, dir, other, closed)
	}
	return other, nil
}

// makeParents creates the missing parents of path. Search permission for
// others is set on those (and only those) whatever the umask says, because
// the Postgres user has to pass through.
func makeParents(path string) error {
	var missing []string
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil {
			break
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("check %s: %w", dir, err)
		}
		missing = append(missing, dir)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := os.Mkdir(missing[i], 0o711); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make the data folder's parent: %w", err)
		}
		if err := os.Chmod(missing[i], 0o711); err != nil {
			return fmt.Errorf("open the data folder's parent: %w", err)
		}
	}
	return nil
}

// initialised says whether dir holds a complete cluster. initdb works in
// another folder that is renamed when it is done, so the file is proof enough.
func initialised(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "PG_VERSION"))
	return err == nil
}

// majorOf returns the version that made the cluster in dir.
func majorOf(dir string) (int, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return 0, fmt.Errorf("read the cluster's version: %w", err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, fmt.Errorf("read the cluster's version: %w", err)
	}
	return major, nil
}

// lock makes this process the only user of the cluster, so that a second one
// does not take the first one's Postgres for an orphan. The kernel drops the
// lock when we die. The file's content is the socket folder of its last user,
// left over if that one was killed.
func lock(dir string) (*os.File, string, error) {
	f, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, "", fmt.Errorf("lock the cluster: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, "", fmt.Errorf("another process uses the cluster in %s: %w", dir, err)
	}
	last, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		_ = f.Close()
		return nil, "", fmt.Errorf("read the cluster's lock file: %w", err)
	}
	return f, string(last), nil
}

// note keeps the socket folder's path in the lock file.
func (c *Cluster) note(socket string) error {
	if err := c.lock.Truncate(0); err != nil {
		return fmt.Errorf("note the socket folder: %w", err)
	}
	if _, err := c.lock.WriteAt([]byte(socket), 0); err != nil {
		return fmt.Errorf("note the socket folder: %w", err)
	}
	return nil
}

package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kernexhq/kernex/pkg/pgcluster"
)

// dirPrefix begins the names of the folders of this package's servers.
const dirPrefix = "kernex-test-"

// ownDir makes a short temporary folder that outlives every test of this
// process, so nobody removes it at the end. It stays locked while the process
// lives; each call first removes the folders whose process is dead.
func ownDir(kind string) (string, error) {
	base := os.TempDir()
	removeDead(base)
	dir, err := os.MkdirTemp(base, dirPrefix+kind+"-")
	if err != nil {
		return "", fmt.Errorf("make a folder for a test server: %w", err)
	}
	// The server may run as another user, who has to pass through.
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", fmt.Errorf("open the folder of a test server: %w", err)
	}
	f, err := os.OpenFile(lockOf(dir), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("lock the folder of a test server: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock the folder of a test server: %w", err)
	}
	atEnd(func() { _ = f.Close() }) // and until then the collector must not close it
	return dir, nil
}

func lockOf(dir string) string { return filepath.Join(dir, "lock") }

// removeDead removes the folders that no process locks. One without a lock file
// is being made right now and is left alone.
func removeDead(base string) {
	dirs, err := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		f, err := os.OpenFile(lockOf(dir), os.O_RDWR|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			if strings.HasPrefix(filepath.Base(dir), dirPrefix+"pg-") {
				_ = pgcluster.Discard(filepath.Join(dir, "data"))
			}
			_ = os.RemoveAll(dir)
		}
		_ = f.Close()
	}
}

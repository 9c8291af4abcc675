package pgcluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// socketPrefix begins the name of every socket folder, so that a later start
// knows which folders it may remove.
const socketPrefix = "kernex-pg-"

// port only names the socket file: nothing listens on TCP.
const port = "5432"

// maxSocketPath is sun_path's size less its final NUL.
const maxSocketPath = 107

// makeSocketDir creates a fresh 0700 folder for the socket that belongs to the
// account, in the temporary folder or in /tmp where that is too long or closed.
func makeSocketDir(who account) (string, error) {
	var last error
	for _, base := range []string{os.TempDir(), "/tmp"} {
		dir, err := os.MkdirTemp(base, socketPrefix)
		if err != nil {
			last = err
			continue
		}
		socket := filepath.Join(dir, ".s.PGSQL."+port)
		closed := who.barrier(socket[:len(dir)])
		switch {
		case len(socket) > maxSocketPath:
			last = fmt.Errorf("%s is longer than %d bytes", socket, maxSocketPath)
		case closed != "":
			last = fmt.Errorf("user %s cannot pass through %s", who.name, closed)
		default:
			if err := who.own(dir); err != nil {
				_ = os.Remove(dir)
				return "", err
			}
			return dir, nil
		}
		_ = os.Remove(dir)
	}
	return "", fmt.Errorf("make a folder for the socket: %w", last)
}

// removeSocketDir removes a socket folder of ours; any other path is left alone.
func removeSocketDir(dir string) {
	if !filepath.IsAbs(dir) || !strings.HasPrefix(filepath.Base(dir), socketPrefix) {
		return
	}
	for _, name := range []string{".s.PGSQL." + port, ".s.PGSQL." + port + ".lock"} {
		_ = os.Remove(filepath.Join(dir, name))
	}
	_ = os.Remove(dir)
}

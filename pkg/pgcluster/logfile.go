package pgcluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

const (
	logName = "postgres.log"
	// maxLog is the size at which the log is set aside at a start; one older
	// file is kept. Postgres logs starts, errors and checkpoints only.
	maxLog = 8 << 20
	// tailBytes is how much of the log goes into an error.
	tailBytes = 2 << 10
)

// openLog opens Postgres' own log in the data folder for its stderr.
func openLog(who account, dir string) (*os.File, error) {
	path := filepath.Join(dir, logName)
	if info, err := os.Lstat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("set the old log aside: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of Postgres: %w", err)
	}
	if who.switched {
		if err := f.Chown(int(who.uid), int(who.gid)); err != nil {
			return nil, errors.Join(fmt.Errorf("open the log of Postgres: %w", err), f.Close())
		}
	}
	return f, nil
}

// tail returns what was written to the log since offset, at most tailBytes of
// its end.
func tail(f *os.File, offset int64) string {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	offset = max(offset, end-tailBytes)
	buf := make([]byte, max(end-offset, 0))
	n, err := f.ReadAt(buf, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	return string(bytes.TrimSpace(buf[:n]))
}

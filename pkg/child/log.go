package child

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

const (
	// maxLog is the size at which a log is set aside at a start; one older
	// file is kept. Our children log starts and errors, so it takes years.
	maxLog = 8 << 20
	// tailBytes is how much of a log goes into an error.
	tailBytes = 2 << 10
)

// Log is the file that takes a child's own words (stdout and stderr).
type Log struct {
	*os.File
	begin int64
}

// OpenLog opens the file for appending. The folder may belong to a less
// trusted user: a link in the file's place is not followed.
func OpenLog(path string) (*Log, error) {
	if info, err := os.Lstat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("set an old log aside: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open a child's log: %w", err)
	}
	begin, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a child's log: %w", err), f.Close())
	}
	return &Log{File: f, begin: begin}, nil
}

// Tail returns what was written since OpenLog, at most the last 2 KiB.
func (l *Log) Tail() string {
	end, err := l.Seek(0, io.SeekEnd)
	if err != nil || end <= l.begin {
		return ""
	}
	from := max(l.begin, end-tailBytes)
	buf := make([]byte, end-from)
	n, err := l.ReadAt(buf, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	return string(bytes.TrimSpace(buf[:n]))
}

package run

import (
	"fmt"
	"os"
	"sync"
)

// logBytes is when a program's log file is rotated; one older file is kept, so
// that a chatty program takes at most twice this much of the disk.
const logBytes = 1 << 20

// logFile is a writer to a file that is renamed to path.1 when it is full.
type logFile struct {
	path string
	max  int64

	mu   sync.Mutex
	f    *os.File
	size int64
}

func openLog(path string, limit int64) (*logFile, error) {
	l := &logFile{path: path, max: limit}
	return l, l.open(os.O_APPEND)
}

func (l *logFile) open(mode int) error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|mode, 0o600)
	if err != nil {
		return fmt.Errorf("open the program's log: %w", err)
	}
	l.f, l.size = f, 0
	if info, err := f.Stat(); err == nil {
		l.size = info.Size()
	}
	return nil
}

// Write always reports success: a full disk must not stop the program.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil && l.size+int64(len(p)) > l.max {
		_ = l.f.Close()
		l.f = nil
		_ = os.Rename(l.path, l.path+".1") // at worst the file is cut below
		if l.open(os.O_TRUNC) != nil {
			return len(p), nil
		}
	}
	if l.f != nil {
		n, _ := l.f.Write(p)
		l.size += int64(n)
	}
	return len(p), nil
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/kernexhq/kernex/pkg/protocol"
)

// Size is when a log file is rotated; one older file is kept, so that a chatty
// program takes at most twice this much of the disk.
const Size = 1 << 20

// flushAfter is how long the start of a line waits for its end before it counts
// as a line: a prompt without a newline must show, too.
const flushAfter = 500 * time.Millisecond

// Sources of lines.
const (
	sourceRun   = "run"
	sourceAgent = "agent"
)

// File is a log on disk: path, and path.1 when it was rotated. Its methods may
// be called from any goroutine.
type File struct {
	path string
	max  int64
	now  func() time.Time

	mu      sync.Mutex
	f       *os.File // nil when it could not be opened
	closed  bool
	size    int64
	partial []byte      // the start of a line
	flush   *time.Timer // ends it
	n       int64       // lines since this process began
	feed    *feed       // nil: nobody follows
}

// line is one line with its number: lines of one file that follow each other
// have numbers that do, those of an earlier process are not above 0.
type line struct {
	n int64
	protocol.LogLine
}

// Open opens the log at path and rotates it beyond limit bytes. Where that does
// not work, on a full disk for instance, it is tried again with each write.
func Open(path string, limit int64) *File {
	l := &File{path: path, max: limit, now: time.Now}
	l.flush = time.AfterFunc(time.Hour, l.end)
	l.flush.Stop()
	_ = l.open(os.O_APPEND) // see above
	return l
}

func (l *File) open(mode int) error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|mode, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // the folder: a script has removed it
		if err = os.MkdirAll(filepath.Dir(l.path), 0o700); err == nil {
			f, err = os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|mode, 0o600)
		}
	}
	if err != nil {
		return fmt.Errorf("open the program's log: %w", err)
	}
	l.f, l.size = f, 0
	if info, err := f.Stat(); err == nil {
		l.size = info.Size()
	}
	return nil
}

// Write takes output of the program and always reports success: a full disk
// must not stop the program.
func (l *File) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []byte
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		whole := i >= 0
		if !whole {
			i = len(rest)
		}
		take := min(i, protocol.MaxLogLine-len(l.partial))
		l.partial = append(l.partial, rest[:take]...)
		rest = rest[take:]
		switch {
		case whole && take == i:
			rest = rest[1:]
			out = l.line(out, sourceRun, "", l.partial)
		case len(l.partial) == protocol.MaxLogLine:
			out = l.line(out, sourceRun, "", l.partial)
		default:
			continue // rest is empty
		}
		l.partial = l.partial[:0]
	}
	l.store(out)
	if len(l.partial) > 0 {
		l.flush.Reset(flushAfter)
	}
	return len(p), nil
}

// Note adds a line of the agent's own, such as why the program ended. level is
// info or warn.
func (l *File) Note(level, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.endPartial(nil)
	l.store(l.line(out, sourceAgent, level, []byte(text[:min(len(text), protocol.MaxLogLine)])))
}

// end makes a line of what has waited for its end.
func (l *File) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.store(l.endPartial(nil))
}

func (l *File) endPartial(out []byte) []byte {
	if len(l.partial) > 0 {
		out = l.line(out, sourceRun, "", l.partial)
		l.partial = l.partial[:0]
	}
	return out
}

// line appends the line's record to out and tells the follower.
func (l *File) line(out []byte, source, level string, text []byte) []byte {
	l.n++
	at := l.now().UTC()
	text = bytes.TrimSuffix(text, []byte("\r"))
	if l.feed != nil {
		l.feed.put(line{l.n, protocol.LogLine{Time: at.UnixMilli(), Source: source, Level: level, Message: clean(text)}})
	}
	return appendRecord(out, at, source, level, text)
}

// store writes whole records.
func (l *File) store(p []byte) {
	if len(p) == 0 {
		return
	}
	if l.f != nil && l.size > 0 && l.size+int64(len(p)) > l.max {
		_ = l.f.Close()
		l.f = nil
		_ = os.Rename(l.path, l.path+".1") // at worst the file is cut below
		if l.open(os.O_TRUNC) != nil {
			return
		}
	}
	if l.f == nil && (l.closed || l.open(os.O_APPEND) != nil) {
		return
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
}

// follow returns the newest lines that are there, at most n and none before
// since, and a feed of all that come after them. The feed before it ends.
func (l *File) follow(n int, since time.Time, f *feed) []line {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.store(l.endPartial(nil))
	l.feed = f
	if n == 0 {
		return nil
	}
	var all []byte
	for _, path := range []string{l.path + ".1", l.path} {
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue // what cannot be read cannot be sent
		}
		all = append(all, data...)
	}
	return tail(all, l.n, n, since)
}

// unfollow ends f if it is still the feed.
func (l *File) unfollow(f *feed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.feed == f {
		l.feed = nil
	}
}

// Close ends the log; what is written later is dropped.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush.Stop()
	l.store(l.endPartial(nil))
	l.closed = true
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

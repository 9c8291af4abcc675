// Package journal keeps values by key in an append-only file, so that what was
// written is still there after a power cut and a half-written change is not.
//
// A record is a length, a CRC32C (4 bytes each, big-endian) and a JSON object
// of keys and values; null deletes a key. One record is one change: it takes
// effect whole or not at all. A torn record at the end is dropped when the file
// is opened. The file is rewritten with the live values at each start and
// whenever it has grown past 1 MiB.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/kernexhq/kernex/pkg/durable"
)

// compactAt is the size, in bytes, at which the file is rewritten.
const compactAt = 1 << 20

// ErrBroken is the error of every write after one whose effect on the disk is
// unknown. Only opening the file again tells what it holds.
var ErrBroken = errors.New("the journal is broken until it is opened again")

// Journal is an open journal. Its methods may be called from any goroutine.
type Journal struct {
	fs   *durable.FS
	path string

	mu     sync.Mutex
	values map[string]json.RawMessage
	file   *durable.File
	size   int64 // of the file, up to its last whole record
	failed chan struct{}
	broken bool

	reserved bool // the reserve is on the disk
}

// Open reads the journal at path, makes it when it is missing and compacts it.
// A file that is damaged before its end is an error: what it said there cannot
// be known, and guessing would turn counters back.
func Open(f *durable.FS, path string) (*Journal, error) {
	j := &Journal{fs: f, path: path, values: map[string]json.RawMessage{}, failed: make(chan struct{})}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	if _, err := replay(data, j.apply); err != nil {
		return nil, fmt.Errorf("read the journal %s: %w", path, err)
	}
	if err := j.compact(); err != nil {
		if !full(err) || len(data) == 0 {
			return j, err
		}
		// It is whole as it is, and no place where its owner could not start.
		if err := j.reopen(); err != nil {
			return j, err
		}
	}
	j.reserve()
	return j, nil
}

// reopen goes on behind the last whole record of the file as it is: compacted,
// if only what follows the rename has failed, or not.
func (j *Journal) reopen() error {
	data, err := os.ReadFile(j.path)
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	end, err := replay(data, func(map[string]json.RawMessage) {})
	if err != nil {
		return fmt.Errorf("read the journal %s: %w", j.path, err)
	}
	if j.file != nil {
		_ = j.file.Close() // a fault behind its opening
	}
	if j.file, err = j.fs.OpenAppend("journal", j.path, 0o600); err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	if err := errors.Join(j.file.Truncate(int64(end)), j.file.Sync()); err != nil {
		return fmt.Errorf("cut the journal's torn end: %w", err)
	}
	// Records in a file whose name a power cut takes back would be lost.
	if err := j.fs.SyncDir("journal", filepath.Dir(j.path)); err != nil {
		return fmt.Errorf("sync the journal's directory: %w", err)
	}
	j.size = int64(end)
	return nil
}

func (j *Journal) apply(change map[string]json.RawMessage) {
	for key, v := range change {
		if v == nil || string(v) == "null" {
			delete(j.values, key)
			continue
		}
		j.values[key] = v
	}
}

// compact rewrites the file with the live values as its one record, on a full
// disk at the price of the reserve.
func (j *Journal) compact() error {
	err := j.rewrite()
	if err != nil && j.release(err) {
		err = j.rewrite()
	}
	return err
}

func (j *Journal) rewrite() error {
	record, err := encode(j.values)
	if err != nil {
		return err
	}
	if j.file != nil {
		_ = j.file.Close() // replaced below, whatever its state
		j.file = nil
	}
	if err := j.fs.WriteFile("journal-compact", j.path, record, 0o600); err != nil {
		return fmt.Errorf("compact the journal: %w", err)
	}
	if j.file, err = j.fs.OpenAppend("journal", j.path, 0o600); err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	j.size = int64(len(record))
	return nil
}

// Read decodes the value of key into v; found is false when there is none.
func (j *Journal) Read(key string, v any) (found bool, err error) {
	j.mu.Lock()
	raw, ok := j.values[key]
	j.mu.Unlock()
	if !ok {
		return false, nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("decode %s in the journal: %w", key, err)
	}
	return true, nil
}

// Write changes the values of all keys in one durable record; nil deletes. On an
// error nothing has changed, or the journal is broken.
func (j *Journal) Write(values map[string]any) error {
	change := make(map[string]json.RawMessage, len(values))
	for key, v := range values {
		raw, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("encode %s for the journal: %w", key, err)
		}
		change[key] = raw
	}
	record, err := encode(change)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken {
		return ErrBroken
	}
	err = j.append(record)
	if err != nil && !j.broken && j.release(err) {
		err = j.append(record)
	}
	if err != nil {
		return err
	}
	j.apply(change)
	defer j.reserve()
	if j.size > compactAt {
		if err := j.compact(); err != nil {
			j.fail()
			return err
		}
	}
	return nil
}

func (j *Journal) append(record []byte) error {
	if _, err := j.file.Write(record); err != nil {
		// A full disk: take the half record back, so that the next may fit.
		if cut := errors.Join(j.file.Truncate(j.size), j.file.Sync()); cut != nil {
			j.fail()
		}
		return fmt.Errorf("write the journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		j.fail() // the kernel may have dropped it, or not
		return fmt.Errorf("sync the journal: %w", err)
	}
	j.size += int64(len(record))
	return nil
}

func (j *Journal) fail() {
	if !j.broken {
		j.broken = true
		close(j.failed)
	}
}

// Failed is closed once the journal is broken; the agent then has to start
// again.
func (j *Journal) Failed() <-chan struct{} { return j.failed }

// Close closes the file; what was written is durable already.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fail()
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}

// Path returns the journal's file in a state directory.
func Path(dir string) string { return filepath.Join(dir, "journal") }

package fetch

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"syscall"

	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// syncEvery is how many bytes may be lost to a power cut. What was not synced
// is found by its digest; this only bounds what is fetched twice.
const syncEvery = 32 << 20

// target is the file that grows to be the archive. With part digests every byte
// before the current part is known to be right.
type target struct {
	file     *durable.File
	ref      protocol.BundleRef
	have     int64 // bytes in the file
	sure     int64 // most bytes that the digests have ever confirmed
	received int64 // bytes written, what was dropped again included
	part     hash.Hash
	unsynced int64
	bad      int // times in a row that a part did not match
}

// openTarget opens path and keeps of it what the part digests confirm. Without
// digests that is nothing: a power cut may have left anything there.
func openTarget(f *durable.FS, path string, ref protocol.BundleRef) (*target, error) {
	if n := int64(len(ref.Parts)); n > 0 && (ref.PartSize <= 0 || (ref.Size+ref.PartSize-1)/ref.PartSize != n) {
		return nil, fleet.Errorf(fleet.CodeInvalid, "%d part digests of %d bytes do not fit an archive of %d bytes", n, ref.PartSize, ref.Size)
	}
	good, err := confirmed(path, ref)
	if err != nil {
		return nil, err
	}
	file, err := f.OpenAppend("download", path, 0o600)
	if err != nil {
		return nil, full(err)
	}
	t := &target{file: file, ref: ref, sure: good, part: sha256.New()}
	return t, t.cut(good)
}

// confirmed returns how many bytes at the start of path are right.
func confirmed(path string, ref protocol.BundleRef) (int64, error) {
	file, err := os.Open(path)
	if notThere(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }()
	var good int64
	for i, want := range ref.Parts {
		size := min(ref.PartSize, ref.Size-good)
		sum := sha256.New()
		n, err := io.CopyN(sum, file, size)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("hash part %d: %w", i, err)
		}
		if n < size || base64.RawURLEncoding.EncodeToString(sum.Sum(nil)) != want {
			break
		}
		good += size
	}
	return good, nil
}

func (t *target) cut(size int64) error {
	if err := t.file.Truncate(size); err != nil {
		return err
	}
	t.have = size
	t.part.Reset()
	return nil
}

// restart drops what is not known to belong to the archive that the command
// names: the current part, without digests everything.
func (t *target) restart() error {
	if len(t.ref.Parts) == 0 {
		return t.cut(0)
	}
	return t.cut(t.start())
}

// write appends p, checking each part that it completes. A part that does not
// match is dropped; too many of them are an error.
func (t *target) write(p []byte) error {
	for len(p) > 0 {
		n := int64(len(p))
		if len(t.ref.Parts) > 0 {
			n = min(n, t.ref.PartSize-t.have%t.ref.PartSize)
		}
		if _, err := t.file.Write(p[:n]); err != nil {
			return errors.Join(err, t.cut(t.start()))
		}
		_, _ = t.part.Write(p[:n]) // a hash does not fail
		t.have += n
		t.received += n
		p = p[n:]
		if err := t.check(); err != nil {
			return err
		}
		if t.unsynced += n; t.unsynced >= syncEvery {
			if err := t.file.Sync(); err != nil {
				return err
			}
			t.unsynced = 0
		}
	}
	return nil
}

// start is where the current part begins.
func (t *target) start() int64 {
	if len(t.ref.Parts) == 0 {
		return t.have
	}
	return t.have - t.have%t.ref.PartSize
}

// check compares the part that has just been completed, if one has.
func (t *target) check() error {
	if len(t.ref.Parts) == 0 || t.have%t.ref.PartSize != 0 && t.have != t.ref.Size {
		return nil
	}
	index := (t.have - 1) / t.ref.PartSize
	got := base64.RawURLEncoding.EncodeToString(t.part.Sum(nil))
	t.part.Reset()
	if got == t.ref.Parts[index] {
		t.bad, t.sure = 0, max(t.sure, t.have)
		return nil
	}
	if err := t.cut(index * t.ref.PartSize); err != nil {
		return err
	}
	if t.bad++; t.bad >= maxBadParts {
		return fleet.Errorf(fleet.CodeChecksum, "part %d of the archive does not match its digest, %d times in a row", index, t.bad)
	}
	return fmt.Errorf("part %d does not match its digest", index)
}

func (t *target) finish() error { return t.file.Sync() }

func (t *target) close() error { return t.file.Close() }

// full names a full disk.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fleet.Errorf(fleet.CodeNoSpace, "the disk is full: %w", err)
	}
	return err
}

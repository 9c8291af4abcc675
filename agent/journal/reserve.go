package journal

import (
	"crypto/rand"
	"errors"
	"os"
	"syscall"
)

// reserveBytes is held back on the disk for the journal: enough to compact it
// and to write the end of a deployment whose script has filled the disk. What
// that end removes is room for the next reserve.
const reserveBytes = 256 << 10

// reserveRoom is what has to be free besides, or the next one who needs a little
// would find the disk full because of us.
const reserveRoom = 4 * reserveBytes

// full reports whether err says that the disk has no room.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

func (j *Journal) reservePath() string { return j.path + ".reserve" }

// release gives the reserve up and reports whether there was one, so that what
// failed for want of space is worth another try.
func (j *Journal) release(err error) bool {
	if !full(err) {
		return false
	}
	j.reserved = false
	return os.Remove(j.reservePath()) == nil
}

// reserve makes the reserve if it is not there and the disk has room. It is not
// the journal's content: nothing depends on its being there after a crash.
func (j *Journal) reserve() {
	if j.reserved {
		return
	}
	if info, err := os.Lstat(j.reservePath()); err == nil && info.Size() == reserveBytes {
		j.reserved = true
		return
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(j.path, &st); err != nil || int64(st.Bavail)*int64(st.Bsize) < reserveBytes+reserveRoom { //nolint:gosec,unconvert // Bsize is 32 bits wide on ARM
		return
	}
	data := make([]byte, reserveBytes)
	_, _ = rand.Read(data) // zeros would take no room on a disk that compresses
	if err := os.WriteFile(j.reservePath(), data, 0o600); err != nil {
		_ = os.Remove(j.reservePath()) // half of it is none
		return
	}
	j.reserved = true
}

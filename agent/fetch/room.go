package fetch

import (
	"fmt"
	"math"
	"syscall"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// spareInodes are for the archive itself, directories and the journal.
const spareInodes = 64

// room checks, before anything is downloaded, that the file system of dir can
// hold what ref makes of it: the archive and the release, each counted as large
// as the expanded files, and a tenth of both; less the have bytes that are there
// already. A command that does not say how large the files are gets the
// archive's size for it, the least that they can be; the exact check follows
// when the manifest is known, before anything is extracted.
func room(dir string, ref protocol.BundleRef, have int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("read the disk's free space: %w", err)
	}
	free := int64(st.Bavail) * int64(st.Bsize) //nolint:gosec,unconvert // Bsize is 32 bits wide on ARM
	need := max(ref.Expanded, ref.Size)
	if need > math.MaxInt64/4 {
		return fleet.Errorf(fleet.CodeTooLarge, "a bundle of %d bytes", need)
	}
	need += need + need/5 - have
	if free < need {
		return fleet.Errorf(fleet.CodeNoSpace, "the bundle needs %d bytes on the disk, %d are free", need, free)
	}
	inodes := uint64(max(ref.Files, 0))
	inodes += inodes/10 + spareInodes
	if st.Files > 0 && st.Ffree < inodes { // some file systems count none
		return fleet.Errorf(fleet.CodeNoSpace, "the bundle needs %d inodes on the disk, %d are free", inodes, st.Ffree)
	}
	return nil
}

package bundle

import (
	"crypto/sha256"
	"hash"
	"io"
	"io/fs"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// The fixed limits of the format. They bound what a stranger's upload can make
// a server or a device do.
const (
	MaxManifestBytes  = 256 << 10
	MaxSignatureBytes = 4 << 10 // minisign's four lines take 300 bytes
	MaxEntries        = 10_000
	MaxPathBytes      = 1024
	MaxDepth          = 16 // elements of a path

	maxElement = 255 // what Linux file systems take
	permMask   = fs.FileMode(0o755)

	// DEFLATE reaches 1,030:1 on zeros, real bundles stay below 20:1. The first
	// megabytes are free, so that a small file of zeros is no bomb.
	maxRatio       = 200
	ratioFreeBytes = 8 << 20

	// expandFactor bounds the expanded size by the bundle's limit.
	expandFactor = 4

	// maxPadding is what may follow tar's end mark, all zeros: tar programs fill
	// up to a blocking factor, at most 1,024 blocks in practice.
	maxPadding = 512 << 10
)

// DefaultMaxBytes is the largest bundle that is taken unless configured: 512 MiB.
const DefaultMaxBytes = 512 << 20

// Limits are the bounds that an installation may change.
type Limits struct {
	MaxBytes int64 // of the compressed bundle; 0 means DefaultMaxBytes. At most 4 times as much may come out of it.
}

func (l Limits) maxBytes() int64 {
	if l.MaxBytes > 0 {
		return l.MaxBytes
	}
	return DefaultMaxBytes
}

func (l Limits) maxExpanded() int64 { return expandFactor * l.maxBytes() }

// source counts, hashes and limits the compressed bytes. It keeps the first
// error that is not the end, because gzip and tar would bury it.
type source struct {
	r   io.Reader
	n   int64
	max int64
	sum hash.Hash
	err error
}

func newSource(r io.Reader, limit int64) *source {
	return &source{r: r, max: limit, sum: sha256.New()}
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if left := s.max - s.n + 1; int64(len(p)) > left {
		p = p[:left] // never take more than one byte too many
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	s.sum.Write(p[:n])
	if s.n > s.max {
		err = fleet.Errorf(fleet.CodeTooLarge, "bundle is larger than %d bytes", s.max)
	}
	if err != nil && err != io.EOF { //nolint:errorlint // a wrapped EOF is a failed read, not the end
		s.err = err
	}
	return n, err
}

// expansion counts and limits the bytes that come out of gzip.
type expansion struct {
	r        io.Reader
	n        int64
	max      int64
	consumed func() int64 // compressed bytes used up so far
	err      error
}

func (e *expansion) Read(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	n, err := e.r.Read(p)
	e.n += int64(n)
	switch {
	case e.n > e.max:
		e.err = fleet.Errorf(fleet.CodeTooLarge, "bundle expands to more than %d bytes", e.max)
	case e.n > ratioFreeBytes && e.n > maxRatio*e.consumed():
		e.err = fleet.Errorf(fleet.CodeTooLarge, "bundle expands more than %d:1", maxRatio)
	default:
		return n, err
	}
	return 0, e.err
}

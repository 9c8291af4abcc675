package bundle

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Info is what is known of a bundle once every byte of it has been checked.
type Info struct {
	Manifest      *Manifest
	ManifestBytes []byte // exactly as they stand in the archive
	Signature     []byte // content of manifest.json.minisig, not verified; nil if there is none
	Release       string // lower-case hex SHA-256 of ManifestBytes
	Checksum      string // lower-case hex SHA-256 of the archive; "" from Check
	Size          int64  // bytes of the archive; 0 from Check
	Expanded      int64  // bytes of the manifest's files in all
}

// Verify reads a bundle to its end and checks all of it, in one pass and in
// memory that does not grow with the bundle. It reads up to and including the
// end of r, so r may be a tee of bytes that are also stored elsewhere; nothing
// of them may be used unless the error is nil. The signature is returned and
// not checked: see VerifySignature.
func Verify(r io.Reader, limits Limits) (*Info, error) {
	return readArchive(r, limits, nil)
}

// reader checks one archive entry by entry.
type reader struct {
	src      *source
	buffered *bufio.Reader
	out      *expansion
	tar      *tar.Reader
	dst      *writer // nil: check only
	buf      []byte

	info    Info
	entries int
	files   map[string]*File // of the manifest
	dirs    map[string]bool  // parents of files
	seen    map[string]bool
}

func readArchive(r io.Reader, limits Limits, dst *writer) (*Info, error) {
	a := &reader{src: newSource(r, limits.maxBytes()), dst: dst, buf: make([]byte, 64<<10), seen: map[string]bool{}}
	err := a.read(limits)
	switch {
	case err == nil:
		return &a.info, nil
	case a.src.err != nil:
		return nil, fmt.Errorf("read bundle: %w", a.src.err)
	case a.out != nil && a.out.err != nil:
		return nil, a.out.err
	case dst != nil && dst.err != nil:
		return nil, fmt.Errorf("extract bundle: %w", dst.err)
	}
	var coded *fleet.Error
	switch {
	case errors.As(err, &coded):
		return nil, err
	case errors.Is(err, gzip.ErrChecksum):
		return nil, fleet.Errorf(fleet.CodeChecksum, "archive: %v", err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return nil, fleet.Errorf(fleet.CodeBadBundle, "archive is truncated")
	}
	return nil, fleet.Errorf(fleet.CodeBadBundle, "archive: %v", err)
}

func (a *reader) read(limits Limits) error {
	a.buffered = bufio.NewReaderSize(a.src, 64<<10)
	gz, err := gzip.NewReader(a.buffered)
	if errors.Is(err, gzip.ErrHeader) {
		return bad("not a gzip file")
	} else if err != nil {
		return err
	}
	gz.Multistream(false) // a second member is refused in finish
	a.out = &expansion{r: gz, max: limits.maxExpanded(), consumed: func() int64 { return a.src.n - int64(a.buffered.Buffered()) }}
	a.tar = tar.NewReader(a.out)
	if err := a.readManifest(limits); err != nil {
		return err
	}
	for {
		h, err := a.next()
		if errors.Is(err, io.EOF) {
			return a.finish()
		} else if err != nil {
			return err
		}
		if err := a.readEntry(h); err != nil {
			return err
		}
	}
}

// next returns the next header after the checks that need no manifest.
func (a *reader) next() (*tar.Header, error) {
	h, err := a.tar.Next()
	if err != nil {
		return nil, err
	}
	if a.entries++; a.entries > MaxEntries+2 { // the manifest and its signature are not counted
		return nil, fleet.Errorf(fleet.CodeTooLarge, "archive has more than %d entries", MaxEntries)
	}
	if kind, refused := refusedTypes[h.Typeflag]; refused {
		return nil, bad("%q is a %s; only regular files and directories are allowed", h.Name, kind)
	}
	if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
		return nil, bad("%q has the unknown type %q", h.Name, h.Typeflag)
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return nil, bad("%q is a sparse file; only regular files and directories are allowed", h.Name)
		}
	}
	if h.Mode&0o7000 != 0 {
		return nil, bad("%q has mode %04o; setuid, setgid and sticky are not allowed", h.Name, h.Mode)
	}
	return h, nil
}

var refusedTypes = map[byte]string{
	tar.TypeLink: "hard link", tar.TypeSymlink: "symbolic link", tar.TypeChar: "character device",
	tar.TypeBlock: "block device", tar.TypeFifo: "FIFO", tar.TypeCont: "contiguous file",
	tar.TypeGNUSparse: "sparse file", tar.TypeXGlobalHeader: "global header",
}

func (a *reader) readManifest(limits Limits) error {
	h, err := a.next()
	if errors.Is(err, io.EOF) {
		return bad("archive is empty")
	} else if err != nil {
		return err
	}
	if h.Name != ManifestName || h.Typeflag != tar.TypeReg {
		return bad("first entry is %q, want the file %s", h.Name, ManifestName)
	}
	data, err := a.readSmall(h, MaxManifestBytes)
	if err != nil {
		return err
	}
	m, err := ParseManifest(data)
	if err != nil {
		return err
	}
	a.info.Manifest, a.info.ManifestBytes, a.info.Release = m, data, ReleaseID(data)
	a.files, a.dirs = map[string]*File{}, map[string]bool{}
	total := int64(0)
	for i := range m.Files {
		f := &m.Files[i]
		a.files[f.Path] = f
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			a.dirs[dir] = true
		}
		if f.Size > limits.maxExpanded()-total {
			return fleet.Errorf(fleet.CodeTooLarge, "the manifest's files are larger than %d bytes in all", limits.maxExpanded())
		}
		total += f.Size
	}
	a.info.Expanded = total
	return a.saveBytes(ManifestName, data)
}

// readEntry checks one entry after the manifest.
func (a *reader) readEntry(h *tar.Header) error {
	name := h.Name
	if h.Typeflag == tar.TypeDir {
		name = strings.TrimSuffix(name, "/")
	}
	if name == SignatureName && a.entries == 2 && h.Typeflag == tar.TypeReg {
		return a.readSignature(h)
	}
	if err := checkPath(name); err != nil {
		return bad("%v", err)
	}
	if a.seen[name] {
		return bad("%q is there twice", name)
	}
	a.seen[name] = true
	if h.Typeflag == tar.TypeDir {
		if !a.dirs[name] {
			return bad("directory %q holds no file of the manifest", name)
		}
		return nil
	}
	f := a.files[name]
	switch {
	case f == nil:
		return bad("%q is not in the manifest", name)
	case h.Size != f.Size:
		return bad("%q has %d bytes, the manifest says %d", name, h.Size, f.Size)
	case h.FileInfo().Mode().Perm()&permMask != f.Perm():
		return bad("%q has mode %04o, the manifest says %s", name, h.Mode, f.Mode)
	}
	return a.readFile(f)
}

func (a *reader) readFile(f *File) error {
	return a.save(f.Path, f.Perm(), func(w io.Writer) error {
		sum := sha256.New()
		if _, err := io.CopyBuffer(io.MultiWriter(sum, w), a.tar, a.buf); err != nil {
			return err
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 {
			return fleet.Errorf(fleet.CodeChecksum, "%q has the SHA-256 %s, the manifest says %s", f.Path, got, f.SHA256)
		}
		return nil
	})
}

// save runs write with the file to extract into, or with a sink when the
// archive is only checked.
func (a *reader) save(name string, perm fs.FileMode, write func(io.Writer) error) error {
	if a.dst == nil {
		return write(io.Discard)
	}
	return a.dst.save(name, perm, write)
}

func (a *reader) saveBytes(name string, data []byte) error {
	return a.save(name, 0o644, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func (a *reader) readSignature(h *tar.Header) error {
	data, err := a.readSmall(h, MaxSignatureBytes)
	if err != nil {
		return err
	}
	if a.info.Manifest.Counter == 0 {
		return bad("the bundle is signed and has no counter; without one an old signed release could be played back")
	}
	a.info.Signature = data
	return a.saveBytes(SignatureName, data)
}

func (a *reader) readSmall(h *tar.Header, limit int64) ([]byte, error) {
	if h.Size > limit {
		return nil, fleet.Errorf(fleet.CodeTooLarge, "%s is %d bytes, want at most %d", h.Name, h.Size, limit)
	}
	data, err := io.ReadAll(a.tar)
	if err != nil {
		return nil, err
	}
	return data, nil
}

// finish checks that nothing is missing and that nothing follows.
func (a *reader) finish() error {
	for i := range a.info.Manifest.Files {
		if p := a.info.Manifest.Files[i].Path; !a.seen[p] {
			return bad("%q is in the manifest and not in the archive", p)
		}
	}
	for padding := 0; ; {
		n, err := a.out.Read(a.buf)
		padding += n
		if padding > maxPadding || len(bytes.Trim(a.buf[:n], "\x00")) > 0 {
			return bad("data after the end of the archive")
		}
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	switch next, err := a.buffered.Peek(2); {
	case len(next) == 0 && err == io.EOF: // a wrapped EOF is a failed read, not the end
	case bytes.Equal(next, []byte{0x1f, 0x8b}):
		return bad("a second gzip member follows the first")
	case len(next) > 0:
		return bad("trailing bytes after the archive")
	default:
		return err
	}
	a.info.Checksum = hex.EncodeToString(a.src.sum.Sum(nil))
	a.info.Size = a.src.n
	if a.dst != nil {
		return a.dst.finish()
	}
	return nil
}

func bad(format string, args ...any) error {
	return fleet.Errorf(fleet.CodeBadBundle, format, args...)
}

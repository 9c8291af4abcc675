// Package install keeps extracted releases on the disk and the link that names
// the current one.
//
//	releases/<id>/        whole bundles, never changed once they have that name
//	archives/<checksum>   downloads
//	staging/              a bundle while it is being extracted; else empty
//	current               -> releases/<id>; the link is the truth
package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Store is the releases of one device below its state directory. One goroutine
// at a time may change it.
type Store struct {
	fs     *durable.FS
	dir    string
	limits bundle.Limits
}

var digest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Open makes the directories that are missing.
func Open(f *durable.FS, dir string, limits bundle.Limits) (*Store, error) {
	s := &Store{fs: f, dir: dir, limits: limits}
	for _, sub := range []string{"releases", "archives", "staging", "state"} {
		if err := f.MkdirAll("install-layout", filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("prepare the state directory: %w", err)
		}
	}
	return s, nil
}

// Release returns the directory of a release.
func (s *Store) Release(id string) string { return filepath.Join(s.dir, "releases", id) }

// Archive returns the path of a finished download.
func (s *Store) Archive(checksum string) string { return filepath.Join(s.dir, "archives", checksum) }

// State returns the directory that bundles keep their data in.
func (s *Store) State() string { return filepath.Join(s.dir, "state") }

// Verify reads the whole archive of ref and checks that it is the one named and
// that the disk can hold what is in it.
func (s *Store) Verify(ctx context.Context, ref protocol.BundleRef) (*bundle.Info, error) {
	info, err := s.read(ctx, ref, func(r io.Reader) (*bundle.Info, error) { return bundle.Verify(r, s.limits) })
	if err != nil {
		return nil, err
	}
	return info, s.room(info)
}

// Extract verifies the archive again while it writes staging/<release>, and
// gives it its name when every file and directory of it is durable. After an
// error there is no release of that name.
func (s *Store) Extract(ctx context.Context, ref protocol.BundleRef) (*bundle.Info, error) {
	if !digest.MatchString(ref.Release) {
		return nil, fleet.Errorf(fleet.CodeInvalid, "release %q is not a SHA-256", ref.Release)
	}
	staging, final := filepath.Join(s.dir, "staging", ref.Release), s.Release(ref.Release)
	for _, old := range []string{staging, final} { // unmarked, or damaged
		if err := s.fs.RemoveAll("extract-clean", old); err != nil {
			return nil, err
		}
	}
	if err := s.fs.MkdirAll("extract", staging, 0o755); err != nil {
		return nil, space(err)
	}
	info, err := s.read(ctx, ref, func(r io.Reader) (*bundle.Info, error) {
		return bundle.Extract(r, tree{s.fs, staging}, s.limits)
	})
	if err == nil {
		if err = s.fs.Rename("extract-publish", staging, final); err == nil {
			return info, nil
		}
	}
	return nil, errors.Join(space(err), s.fs.RemoveAll("extract-clean", staging))
}

// read runs f over the archive and compares what it is with ref.
func (s *Store) read(ctx context.Context, ref protocol.BundleRef, f func(io.Reader) (*bundle.Info, error)) (*bundle.Info, error) {
	file, err := os.Open(s.Archive(ref.Checksum))
	if err != nil {
		return nil, fmt.Errorf("open the archive: %w", err)
	}
	defer func() { _ = file.Close() }()
	info, err := f(reader{ctx, file})
	if err != nil {
		return nil, err
	}
	if info.Checksum != ref.Checksum || info.Release != ref.Release {
		return nil, fleet.Errorf(fleet.CodeChecksum, "the archive is %s with release %s, the command names %s with release %s", info.Checksum, info.Release, ref.Checksum, ref.Release)
	}
	return info, nil
}

// room checks space and inodes for what the archive expands to, with a tenth to
// spare.
func (s *Store) room(info *bundle.Info) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("read the disk's free space: %w", err)
	}
	free, need := int64(st.Bavail)*int64(st.Bsize), info.Expanded+info.Expanded/10 //nolint:gosec,unconvert // Bsize is 32 bits wide on ARM
	if free < need {
		return fleet.Errorf(fleet.CodeNoSpace, "the bundle needs %d bytes, the disk has %d", need, free)
	}
	if files := uint64(len(info.Manifest.Files)) + 64; st.Files > 0 && st.Ffree < files+files/10 {
		return fleet.Errorf(fleet.CodeNoSpace, "the bundle needs %d inodes, the disk has %d", files, st.Ffree)
	}
	return nil
}

// space names a full disk.
func space(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fleet.Errorf(fleet.CodeNoSpace, "the disk is full: %w", err)
	}
	return err
}

// Discard removes an archive and what there is of its download.
func (s *Store) Discard(ref protocol.BundleRef) error {
	path := s.Archive(ref.Checksum)
	return errors.Join(s.fs.Remove("archive-discard", path), s.fs.Remove("archive-discard", path+".part"))
}

// Current returns the release that the link names, "" if there is none.
func (s *Store) Current() (string, error) {
	target, err := os.Readlink(filepath.Join(s.dir, "current"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the current release: %w", err)
	}
	id, ok := strings.CutPrefix(target, "releases/")
	if !ok || !digest.MatchString(id) {
		return "", fleet.Errorf(fleet.CodeInconsistent, "current points to %q, which is no release", target)
	}
	return id, nil
}

// Switch makes id the current release, atomically and durably; "" is none.
func (s *Store) Switch(id string) error {
	link := filepath.Join(s.dir, "current")
	// A script may have left something else there, which no rename replaces.
	if info, err := os.Lstat(link); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		if err := s.fs.RemoveAll("switch-clean", link); err != nil {
			return err
		}
	}
	if id == "" {
		if err := s.fs.Remove("switch-none", link); err != nil {
			return err
		}
		return s.fs.SyncDir("switch-none", s.dir)
	}
	if _, err := os.Stat(s.Release(id)); err != nil {
		return fmt.Errorf("switch to a release: %w", err)
	}
	return s.fs.Switch("switch", link, "releases/"+id)
}

// Manifest returns the manifest of a release, whose own bytes must have the
// release's id. The files are not read.
func (s *Store) Manifest(id string) (*bundle.Manifest, error) {
	data, err := os.ReadFile(filepath.Join(s.Release(id), bundle.ManifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fleet.Errorf(fleet.CodeNotFound, "release %s is not on this device", id)
	}
	if err != nil {
		return nil, fmt.Errorf("read a manifest: %w", err)
	}
	if got := bundle.ReleaseID(data); got != id {
		return nil, fleet.Errorf(fleet.CodeChecksum, "the manifest of release %s has the hash %s", id, got)
	}
	return bundle.ParseManifest(data)
}

// Whole checks every file of a release.
func (s *Store) Whole(id string) (*bundle.Info, error) {
	if _, err := os.Stat(s.Release(id)); errors.Is(err, fs.ErrNotExist) {
		return nil, fleet.Errorf(fleet.CodeNotFound, "release %s is not on this device", id)
	}
	info, err := bundle.Check(s.Release(id))
	if err != nil {
		return nil, err
	}
	if info.Release != id {
		return nil, fleet.Errorf(fleet.CodeChecksum, "the files of release %s are those of %s", id, info.Release)
	}
	return info, nil
}

// Tidy empties staging and removes all releases and archives that are not
// listed. The current release always stays.
func (s *Store) Tidy(releases, archives []string) error {
	current, err := s.Current()
	if err != nil {
		return err
	}
	keep := func(dir, name string) bool {
		switch dir {
		case "releases":
			return name == current || slices.Contains(releases, name)
		case "archives":
			return slices.Contains(archives, strings.TrimSuffix(name, ".part"))
		}
		return false
	}
	for _, dir := range []string{"staging", "releases", "archives"} {
		entries, e := os.ReadDir(filepath.Join(s.dir, dir))
		if errors.Is(e, fs.ErrNotExist) { // a script's work
			e = s.fs.MkdirAll("tidy", filepath.Join(s.dir, dir), 0o700)
		}
		err = errors.Join(err, e)
		for _, entry := range entries {
			if !keep(dir, entry.Name()) {
				err = errors.Join(err, s.fs.RemoveAll("tidy", filepath.Join(s.dir, dir, entry.Name())))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("tidy the state directory: %w", err)
	}
	return nil
}

// tree is the bundle package's view of a directory, through the durable seam.
type tree struct {
	fs   *durable.FS
	root string
}

func (t tree) MkdirAll(name string, perm fs.FileMode) error {
	return t.fs.MkdirAll("extract", filepath.Join(t.root, name), perm)
}

func (t tree) Create(name string, perm fs.FileMode) (bundle.SyncWriter, error) {
	return t.fs.Create("extract", filepath.Join(t.root, name), perm)
}

func (t tree) SyncDir(name string) error { return t.fs.SyncDir("extract", filepath.Join(t.root, name)) }

// reader ends a long read when its context does.
type reader struct {
	ctx context.Context //nolint:containedctx // io.Reader has none
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

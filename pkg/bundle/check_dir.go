package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Check verifies an extracted bundle again: manifest.json in dir is a valid
// manifest, every file it lists is there with its size, mode and SHA-256, and
// nothing else is there. It follows no symbolic link. The caller compares
// Info.Release with the release it expects; Checksum and Size are those of an
// archive and stay zero.
func Check(dir string) (*Info, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("check release: %w", err)
	}
	info, err := checkRoot(root)
	return info, errors.Join(err, root.Close())
}

func checkRoot(root *os.Root) (*Info, error) {
	data, err := readSmallFile(root, ManifestName, MaxManifestBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, bad("%s is missing", ManifestName)
	} else if err != nil {
		return nil, err
	}
	m, err := ParseManifest(data)
	if err != nil {
		return nil, err
	}
	info := &Info{Manifest: m, ManifestBytes: data, Release: ReleaseID(data)}
	missing, dirs := map[string]*File{}, map[string]bool{".": true}
	for i := range m.Files {
		f := &m.Files[i]
		missing[f.Path] = f
		info.Expanded += f.Size
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			dirs[dir] = true
		}
	}
	buf := make([]byte, 64<<10)
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fmt.Errorf("check release: %w", err)
		case d.IsDir() && dirs[p], p == ManifestName:
			return nil
		case d.IsDir():
			return bad("directory %q is not in the manifest", p)
		case p == SignatureName:
			info.Signature, err = readSmallFile(root, p, MaxSignatureBytes)
			return err
		}
		f := missing[p]
		if f == nil {
			return bad("%q is not in the manifest", p)
		}
		delete(missing, p)
		return checkFile(root, f, d, buf)
	})
	if err != nil {
		return nil, err
	}
	for i := range m.Files {
		if p := m.Files[i].Path; missing[p] != nil {
			return nil, bad("%q is missing", p)
		}
	}
	return info, nil
}

func checkFile(root *os.Root, want *File, d fs.DirEntry, buf []byte) error {
	if !d.Type().IsRegular() { // before opening it: a FIFO would block
		return bad("%q is no regular file", want.Path)
	}
	f, err := root.Open(want.Path)
	if err != nil {
		return fmt.Errorf("check release: %w", err)
	}
	err = checkContent(f, want, buf)
	return errors.Join(err, f.Close())
}

func checkContent(f *os.File, want *File, buf []byte) error {
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("check release: %w", err)
	}
	if special := fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky; st.Mode().Perm() != want.Perm() || st.Mode()&special != 0 {
		return bad("%q has mode %s, the manifest says %s", want.Path, st.Mode(), want.Mode)
	}
	if st.Size() != want.Size {
		return fleet.Errorf(fleet.CodeChecksum, "%q has %d bytes, the manifest says %d", want.Path, st.Size(), want.Size)
	}
	sum := sha256.New()
	if _, err := io.CopyBuffer(sum, onlyReader{f}, buf); err != nil {
		return fmt.Errorf("check release: read %q: %w", want.Path, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.SHA256 {
		return fleet.Errorf(fleet.CodeChecksum, "%q has the SHA-256 %s, the manifest says %s", want.Path, got, want.SHA256)
	}
	return nil
}

// onlyReader hides os.File's WriteTo, which would ignore the shared buffer.
type onlyReader struct{ io.Reader }

// readSmallFile reads a regular file of at most limit bytes.
func readSmallFile(root *os.Root, name string, limit int64) ([]byte, error) {
	st, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, bad("%q is no regular file", name)
	}
	if st.Size() > limit {
		return nil, fleet.Errorf(fleet.CodeTooLarge, "%s is %d bytes, want at most %d", name, st.Size(), limit)
	}
	return root.ReadFile(name)
}

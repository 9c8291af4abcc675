package bundle

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Build writes the bundle of the directory dir to w. The directory holds the
// scripts, the files, and a manifest.json without files, which Build fills in;
// names that begin with a dot are left out. The same content gives the same
// bytes, whatever the owners, times and order of the files; of the permissions
// only the owner's execute bit counts (0755, else 0644).
//
// What has been written is checked by Verify with the same limits at the same
// time, and the answer is Verify's: after a nil error an upload is accepted.
func Build(dir string, w io.Writer, limits Limits) (*Info, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("build bundle: %w", err)
	}
	info, err := buildRoot(root, w, limits)
	return info, errors.Join(err, root.Close())
}

// FilledManifest returns the exact bytes of the manifest.json that Build will
// write for dir: what a release key signs.
func FilledManifest(dir string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("build bundle: %w", err)
	}
	_, data, err := fillManifest(root)
	return data, errors.Join(err, root.Close())
}

func buildRoot(root *os.Root, w io.Writer, limits Limits) (*Info, error) {
	m, data, err := fillManifest(root)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	var info *Info
	var verifyErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		info, verifyErr = Verify(pr, limits)
		pr.CloseWithError(verifyErr) // a refusal stops the writer, which would block
	}()
	writeErr := writeArchive(root, io.MultiWriter(w, pw), m, data)
	pw.CloseWithError(writeErr)
	<-done
	switch {
	case writeErr != nil && !errors.Is(writeErr, verifyErr):
		return nil, fmt.Errorf("build bundle: %w", writeErr)
	case verifyErr != nil:
		return nil, fmt.Errorf("build bundle: %w", verifyErr)
	}
	return info, nil
}

// fillManifest reads the source manifest and adds files.
func fillManifest(root *os.Root) (*Manifest, []byte, error) {
	data, err := readSmallFile(root, ManifestName, MaxManifestBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, bad("%s is missing", ManifestName)
	} else if err != nil {
		return nil, nil, fmt.Errorf("build bundle: %w", err)
	}
	m, err := decodeManifest(data)
	if err != nil {
		return nil, nil, err
	}
	if m.Files != nil {
		return nil, nil, bad("%s: files is filled in by the build; leave it out of the source", ManifestName)
	}
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fmt.Errorf("build bundle: %w", err)
		case p != "." && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir(), p == ManifestName, p == SignatureName:
			return nil
		case !d.Type().IsRegular():
			return bad("%q is a %s; only regular files and directories are allowed", p, d.Type())
		case len(m.Files) == MaxEntries:
			return fleet.Errorf(fleet.CodeTooLarge, "more than %d files", MaxEntries)
		}
		f, err := describe(root, p)
		if err != nil {
			return err
		}
		m.Files = append(m.Files, f) // WalkDir's order is sorted
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if err := m.check(); err != nil {
		return nil, nil, bad("%s: %v", ManifestName, err)
	}
	filled, err := m.encode()
	return m, filled, err
}

func describe(root *os.Root, p string) (File, error) {
	f, err := root.Open(p)
	if err != nil {
		return File{}, fmt.Errorf("build bundle: %w", err)
	}
	st, err := f.Stat()
	sum := sha256.New()
	var n int64
	if err == nil {
		n, err = io.Copy(sum, f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return File{}, fmt.Errorf("build bundle: read %q: %w", p, err)
	}
	mode := "0644"
	if st.Mode()&0o100 != 0 {
		mode = "0755"
	}
	return File{Path: p, Mode: mode, Size: n, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

func writeArchive(root *os.Root, w io.Writer, m *Manifest, manifest []byte) error {
	gz := gzip.NewWriter(w) // its header has no name and no time
	tw := tar.NewWriter(gz)
	if err := writeBytes(tw, ManifestName, manifest); err != nil {
		return err
	}
	signature, err := readSmallFile(root, SignatureName, MaxSignatureBytes)
	if err == nil {
		err = writeBytes(tw, SignatureName, signature)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range m.Files {
		if err := writeFile(tw, root, f); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return gz.Close()
}

func header(name string, perm fs.FileMode, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(perm), Size: size, ModTime: time.Unix(0, 0)}
}

func writeBytes(tw *tar.Writer, name string, data []byte) error {
	if err := tw.WriteHeader(header(name, 0o644, int64(len(data)))); err != nil {
		return err
	}
	_, err := tw.Write(data)
	return err
}

// writeFile copies a file that has been described. One that has changed since
// then is found here by its size and by Verify by its digest.
func writeFile(tw *tar.Writer, root *os.Root, f File) error {
	src, err := root.Open(f.Path)
	if err != nil {
		return err
	}
	err = tw.WriteHeader(header(f.Path, f.Perm(), f.Size))
	var n int64
	if err == nil {
		n, err = io.Copy(tw, src)
	}
	if err == nil && n != f.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		err = fmt.Errorf("write %q: %w", f.Path, err)
	}
	return errors.Join(err, src.Close())
}

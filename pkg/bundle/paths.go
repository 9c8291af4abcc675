package bundle

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// checkFiles checks the shape of files and their paths.
func (m *Manifest) checkFiles() error {
	if len(m.Files) == 0 {
		return fmt.Errorf("files is missing or empty")
	}
	if len(m.Files) > MaxEntries {
		return fmt.Errorf("files has %d entries, want at most %d", len(m.Files), MaxEntries)
	}
	paths := newPathSet()
	for _, f := range m.Files {
		if err := paths.addFile(f.Path); err != nil {
			return err
		}
		if !modeRE.MatchString(f.Mode) || f.Perm()&^permMask != 0 || f.Perm()&0o400 == 0 {
			return fmt.Errorf("files: mode of %q is %q, want four octal digits from 0400 to 0755", f.Path, f.Mode)
		}
		if f.Size < 0 {
			return fmt.Errorf("files: size of %q is %d", f.Path, f.Size)
		}
		if !digestRE.MatchString(f.SHA256) {
			return fmt.Errorf("files: sha256 of %q is %q, want 64 lower-case hex digits", f.Path, f.SHA256)
		}
	}
	return nil
}

// checkPath reports why p may not name a file of a bundle. Depth counts the
// elements of the path.
func checkPath(p string) error {
	switch {
	case p == "":
		return fmt.Errorf("path is empty")
	case len(p) > MaxPathBytes:
		return fmt.Errorf("path %.40q... is %d bytes, want at most %d", p, len(p), MaxPathBytes)
	case !utf8.ValidString(p):
		return fmt.Errorf("path %q is not UTF-8", p)
	case strings.ContainsFunc(p, unicode.IsControl):
		return fmt.Errorf("path %q has control characters", p)
	case strings.Contains(p, `\`):
		return fmt.Errorf("path %q has a backslash", p)
	case !filepath.IsLocal(p):
		return fmt.Errorf("path %q leaves the bundle", p)
	case path.Clean(p) != p || p == ".":
		return fmt.Errorf("path %q is not in its shortest form", p)
	}
	elements := strings.Split(p, "/")
	if len(elements) > MaxDepth {
		return fmt.Errorf("path %q is %d deep, want at most %d", p, len(elements), MaxDepth)
	}
	for _, e := range elements {
		if len(e) > maxElement {
			return fmt.Errorf("path %q has an element of %d bytes, want at most %d", p, len(e), maxElement)
		}
	}
	return nil
}

// pathSet finds paths that some file system would take for the same: equal
// after folding case and normalising, or a file where another path needs a
// directory.
type pathSet struct {
	exact map[string]string // folded path or parent -> as written first
	files map[string]bool   // folded paths that are files
}

func newPathSet() *pathSet {
	s := &pathSet{exact: map[string]string{}, files: map[string]bool{}}
	for _, reserved := range []string{ManifestName, SignatureName} {
		s.exact[fold(reserved)] = reserved
		s.files[fold(reserved)] = true
	}
	return s
}

func (s *pathSet) addFile(p string) error {
	if err := checkPath(p); err != nil {
		return err
	}
	folded := fold(p)
	if first, ok := s.exact[folded]; ok {
		if first == p {
			return fmt.Errorf("path %q is there twice", p)
		}
		return fmt.Errorf("paths %q and %q are the same where case or accents are folded", first, p)
	}
	s.exact[folded] = p
	s.files[folded] = true
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		f := fold(dir)
		if s.files[f] {
			return fmt.Errorf("path %q needs a directory where %q is a file", p, s.exact[f])
		}
		if first, ok := s.exact[f]; ok && first != dir {
			return fmt.Errorf("paths %q and %q are the same where case or accents are folded", first, dir)
		}
		s.exact[f] = dir
	}
	return nil
}

// fold maps every spelling that a case-insensitive or normalising file system
// could merge to one: decomposed, then each letter to the least of its case
// variants, then composed.
func fold(p string) string {
	return norm.NFC.String(strings.Map(func(r rune) rune {
		least := r
		for v := unicode.SimpleFold(r); v != r; v = unicode.SimpleFold(v) {
			least = min(least, v)
		}
		return least
	}, norm.NFD.String(p)))
}

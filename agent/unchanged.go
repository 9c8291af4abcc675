package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// seal is what the files of a release looked like at one moment. A script that
// changes its own release would leave one that no manifest describes: what runs
// after it must be what was verified. Files that are new are none of the
// manifest's and are let be.
type seal struct {
	dir   string
	files []bundle.File
	stats []syscall.Stat_t
}

// sealRelease looks at the files of release id in dir: those that its manifest
// lists, and that itself.
func sealRelease(dir, id string, files []bundle.File) (seal, error) {
	s := seal{dir: dir, files: append([]bundle.File{{Path: bundle.ManifestName, SHA256: id}}, files...)}
	s.stats = make([]syscall.Stat_t, len(s.files))
	for i, f := range s.files {
		if err := syscall.Lstat(filepath.Join(dir, f.Path), &s.stats[i]); err != nil {
			return s, fmt.Errorf("look at %s: %w", f.Path, err)
		}
	}
	return s, nil
}

// check says which file is not the one of the manifest any more. Only files that
// were touched are read.
func (s seal) check() error {
	for i, f := range s.files {
		var now syscall.Stat_t
		path, was := filepath.Join(s.dir, f.Path), s.stats[i]
		if err := syscall.Lstat(path, &now); err != nil {
			return fleet.Errorf(fleet.CodeScript, "it removed or moved %s of its own release", f.Path)
		}
		if now.Ino == was.Ino && now.Dev == was.Dev && now.Mode == was.Mode && now.Size == was.Size && now.Mtim == was.Mtim && now.Ctim == was.Ctim {
			continue
		}
		same := now.Mode == was.Mode && now.Size == was.Size
		if same {
			sum, err := digest(path)
			if err != nil {
				return err
			}
			same = sum == f.SHA256
		}
		if !same {
			return fleet.Errorf(fleet.CodeScript, "it changed %s of its own release; what changes belongs into KERNEX_STATE_DIR", f.Path)
		}
	}
	return nil
}

func digest(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("read a release's file: %w", err)
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("read a release's file: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

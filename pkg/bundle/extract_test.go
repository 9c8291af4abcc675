package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
)

func extractInto(dir string, r io.Reader) (*Info, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	info, err := Extract(r, RootFS{root}, Limits{})
	return info, errors.Join(err, root.Close())
}

func extractGood(t *testing.T) (dir string, info *Info) {
	t.Helper()
	archive, _ := good(t)
	dir = t.TempDir()
	info, err := extractInto(dir, bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	return dir, info
}

func TestAnExtractedBundlePassesCheck(t *testing.T) {
	t.Parallel()
	dir, info := extractGood(t)
	checked, err := Check(dir)
	if err != nil {
		t.Fatal(err)
	}
	if checked.Release != info.Release || checked.Expanded != info.Expanded {
		t.Fatalf("%+v, want the release %s", checked, info.Release)
	}
	body, err := os.ReadFile(filepath.Join(dir, "data/model.bin"))
	if err != nil || string(body) != model.body {
		t.Fatalf("%d bytes, %v", len(body), err)
	}
}

func TestCheckFindsEveryChangeToAnExtractedBundle(t *testing.T) {
	t.Parallel()
	const badBundle, checksum = fleet.CodeBadBundle, fleet.CodeChecksum
	for name, tc := range map[string]struct {
		change func(path func(string) string) error
		code   fleet.Code
		want   string
	}{
		"one bit": {func(p func(string) string) error {
			return os.WriteFile(p("data/model.bin"), []byte("X"+model.body[1:]), 0o644)
		}, checksum, `"data/model.bin" has the SHA-256`},
		"longer":          {func(p func(string) string) error { return os.WriteFile(p("deploy.sh"), []byte("longer......"), 0o755) }, checksum, `"deploy.sh" has 12 bytes`},
		"mode":            {func(p func(string) string) error { return os.Chmod(p("deploy.sh"), 0o644) }, badBundle, `"deploy.sh" has mode`},
		"setuid":          {func(p func(string) string) error { return os.Chmod(p("deploy.sh"), 0o755|fs.ModeSetuid) }, badBundle, `"deploy.sh" has mode`},
		"missing":         {func(p func(string) string) error { return os.Remove(p("data/model.bin")) }, badBundle, `"data/model.bin" is missing`},
		"extra file":      {func(p func(string) string) error { return os.WriteFile(p("data/x"), nil, 0o644) }, badBundle, `"data/x" is not in the manifest`},
		"extra directory": {func(p func(string) string) error { return os.Mkdir(p("x"), 0o755) }, badBundle, `directory "x" is not in the manifest`},
		"symbolic link": {func(p func(string) string) error {
			return errors.Join(os.Rename(p("deploy.sh"), p("../elsewhere")), os.Symlink("../elsewhere", p("deploy.sh")))
		}, badBundle, "no regular file"},
		"FIFO": {func(p func(string) string) error {
			return errors.Join(os.Remove(p("deploy.sh")), syscall.Mkfifo(p("deploy.sh"), 0o755))
		}, badBundle, "no regular file"},
		"directory": {func(p func(string) string) error {
			return errors.Join(os.Remove(p("deploy.sh")), os.Mkdir(p("deploy.sh"), 0o755))
		}, badBundle, `directory "deploy.sh"`},
		"no manifest": {func(p func(string) string) error { return os.Remove(p(ManifestName)) }, badBundle, "manifest.json is missing"},
		"manifest a link": {func(p func(string) string) error {
			return errors.Join(os.Rename(p(ManifestName), p("../m")), os.Symlink("../m", p(ManifestName)))
		}, badBundle, "no regular file"},
		"manifest truncated": {func(p func(string) string) error { return os.Truncate(p(ManifestName), 10) }, badBundle, "manifest.json"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "release")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			archive, _ := good(t)
			if _, err := extractInto(dir, bytes.NewReader(archive)); err != nil {
				t.Fatal(err)
			}
			if err := tc.change(func(p string) string { return filepath.Join(dir, p) }); err != nil {
				t.Fatal(err)
			}
			if _, err := Check(dir); err == nil || !strings.Contains(err.Error(), tc.want) || fleet.ErrorCode(err) != tc.code {
				t.Fatalf("got %v, want %s with %q", err, tc.code, tc.want)
			}
		})
	}
}

func TestExtractOverwritesNothing(t *testing.T) {
	t.Parallel()
	archive, _ := good(t)
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "deploy.sh")); err != nil {
		t.Fatal(err)
	}
	if _, err := extractInto(dir, bytes.NewReader(archive)); !errors.Is(err, fs.ErrExist) || fleet.ErrorCode(err) != fleet.CodeInternal {
		t.Fatalf("got %v", err)
	}
}

// failingFS is a RootFS that notes every call and fails one of them.
type failingFS struct {
	RootFS
	calls *[]string
	fail  int
}

func (f failingFS) note(op, name string) error {
	*f.calls = append(*f.calls, op+" "+name)
	if len(*f.calls)-1 == f.fail {
		return fmt.Errorf("%s: %w", op, syscall.ENOSPC)
	}
	return nil
}

func (f failingFS) MkdirAll(name string, perm fs.FileMode) error {
	return errors.Join(f.note("mkdir", name), f.RootFS.MkdirAll(name, perm))
}

func (f failingFS) Create(name string, perm fs.FileMode) (SyncWriter, error) {
	if err := f.note("create", name); err != nil {
		return nil, err
	}
	w, err := f.RootFS.Create(name, perm)
	return failingFile{w, f, name}, err
}

func (f failingFS) SyncDir(name string) error {
	return errors.Join(f.note("syncdir", name), f.RootFS.SyncDir(name))
}

type failingFile struct {
	SyncWriter
	fs   failingFS
	name string
}

func (f failingFile) Write(p []byte) (int, error) {
	if err := f.fs.note("write", f.name); err != nil {
		return 0, err
	}
	return f.SyncWriter.Write(p)
}

func (f failingFile) Sync() error {
	return errors.Join(f.fs.note("sync", f.name), f.SyncWriter.Sync())
}

func (f failingFile) Close() error {
	return errors.Join(f.fs.note("close", f.name), f.SyncWriter.Close())
}

func TestEveryFailedCallToTheDiskEndsExtractAndIsNotABadBundle(t *testing.T) {
	t.Parallel()
	archive, _ := good(t)
	extract := func(fail int) ([]string, error) {
		root, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		var calls []string
		_, err = Extract(bytes.NewReader(archive), failingFS{RootFS{root}, &calls, fail}, Limits{})
		return calls, errors.Join(err, root.Close())
	}
	calls, err := extract(-1)
	if err != nil {
		t.Fatal(err)
	}
	want := "create manifest.json|write manifest.json|sync manifest.json|close manifest.json|" +
		"create deploy.sh|write deploy.sh|sync deploy.sh|close deploy.sh|" +
		"mkdir data|create data/model.bin|write data/model.bin|sync data/model.bin|close data/model.bin|syncdir data|syncdir ."
	if got := strings.Join(calls, "|"); got != want {
		t.Fatalf("calls\n%s\nwant\n%s", got, want)
	}
	for i, call := range calls {
		if _, err := extract(i); !errors.Is(err, syscall.ENOSPC) || fleet.ErrorCode(err) != fleet.CodeInternal {
			t.Errorf("%s failed: %v", call, err)
		}
	}
}

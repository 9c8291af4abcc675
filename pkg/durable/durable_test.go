package durable_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kernexhq/kernex/pkg/durable"
)

// killEnv makes the test binary write a file and kill itself at a call: its
// value is "path:n", where n counts the moments before and after each call.
const killEnv = "DURABLE_TEST_KILL"

func TestMain(m *testing.M) {
	if v := os.Getenv(killEnv); v != "" {
		path, n, _ := strings.Cut(v, ":")
		at, err := strconv.Atoi(n)
		if err != nil {
			os.Exit(2)
		}
		f := &durable.FS{Hook: faultAt(at, func() error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) })}
		if f.WriteFile("config", path, []byte("new"), 0o600) != nil {
			os.Exit(2)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// faultAt calls fault at the n-th moment, counted from 0.
func faultAt(n int, fault func() error) durable.Hook {
	i := -1
	return func(durable.Call, bool) error {
		if i++; i == n {
			return fault()
		}
		return nil
	}
}

// calls lists the moments of an operation, as "before open" and so on.
func calls(t *testing.T, operation func(*durable.FS) error) []string {
	t.Helper()
	var list []string
	f := &durable.FS{Hook: func(c durable.Call, before bool) error {
		when := "after"
		if before {
			when = "before"
		}
		list = append(list, when+" "+string(c.Kind))
		return nil
	}}
	if err := operation(f); err != nil {
		t.Fatal(err)
	}
	return list
}

func oldFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(path string) func(*durable.FS) error {
	return func(f *durable.FS) error { return f.WriteFile("config", path, []byte("new"), 0o600) }
}

func TestWriteFileSyncsTheFileBeforeAndTheDirectoryAfterTheRename(t *testing.T) {
	t.Parallel()
	var got []string
	for _, c := range calls(t, write(oldFile(t))) {
		if kind, ok := strings.CutPrefix(c, "before "); ok {
			got = append(got, kind)
		}
	}
	want := []string{"open", "write", "sync", "close", "rename", "syncdir"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestAFaultAnywhereInWriteFileLeavesOldOrNewWhole(t *testing.T) {
	t.Parallel()
	moments := calls(t, write(oldFile(t)))
	fault := errors.New("no space")
	for n, moment := range moments {
		path := oldFile(t)
		f := &durable.FS{Hook: faultAt(n, func() error { return fault })}
		if err := f.WriteFile("config", path, []byte("new"), 0o600); !errors.Is(err, fault) {
			t.Errorf("%s: the error is %v", moment, err)
		}
		if got, want := read(t, path), expected(moments, n); got != want {
			t.Errorf("%s: %q, want %q", moment, got, want)
		}
		if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
			t.Errorf("%s: %d files, %v", moment, len(left), err)
		}
	}
}

func TestAKillAnywhereInWriteFileLeavesOldOrNewWholeAndTheNextWriteWorks(t *testing.T) {
	t.Parallel()
	moments := calls(t, write(oldFile(t)))
	for n, moment := range moments {
		path := oldFile(t)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%d", killEnv, path, n))
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%s: the process was not killed: %v", moment, err)
		}
		if got, want := read(t, path), expected(moments, n); got != want {
			t.Errorf("%s: %q, want %q", moment, got, want)
		}
		if err := new(durable.FS).WriteFile("config", path, []byte("third"), 0o600); err != nil || read(t, path) != "third" {
			t.Errorf("%s: the next write: %q, %v", moment, read(t, path), err)
		}
	}
}

// expected is the content after a fault at moment n: new once the rename is done.
func expected(moments []string, n int) string {
	for _, m := range moments[:n+1] {
		if m == "after rename" {
			return "new"
		}
	}
	return "old"
}

func TestPermissionsAreExactWhateverTheUmask(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := t.TempDir()
	f := new(durable.FS)
	file, sub := filepath.Join(dir, "run.sh"), filepath.Join(dir, "a", "b")
	if err := errors.Join(f.WriteFile("x", file, nil, 0o755), f.MkdirAll("x", sub, 0o711)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{file: 0o755, sub: 0o711, filepath.Dir(sub): 0o711} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func TestAFaultAnywhereInSwitchLeavesAWholeLink(t *testing.T) {
	t.Parallel()
	setup := func() string {
		link := filepath.Join(t.TempDir(), "current")
		if err := new(durable.FS).Switch("switch", link, "releases/old"); err != nil {
			t.Fatal(err)
		}
		return link
	}
	moments := calls(t, func(f *durable.FS) error { return f.Switch("switch", setup(), "releases/new") })
	fault := errors.New("fault")
	for n, moment := range moments {
		link := setup()
		f := &durable.FS{Hook: faultAt(n, func() error { return fault })}
		if err := f.Switch("switch", link, "releases/new"); !errors.Is(err, fault) {
			t.Errorf("%s: the error is %v", moment, err)
		}
		want := "releases/" + expected(moments, n)
		if got, err := os.Readlink(link); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", moment, got, err, want)
		}
		if err := new(durable.FS).Switch("switch", link, "releases/third"); err != nil {
			t.Errorf("%s: the next switch: %v", moment, err)
		}
	}
}

func TestAFaultBeforeACallMeansThatItIsNotDone(t *testing.T) {
	t.Parallel()
	fault := errors.New("fault")
	f := &durable.FS{Hook: func(durable.Call, bool) error { return fault }}
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, createErr := f.Create("op", filepath.Join(dir, "created"), 0o600)
	for name, err := range map[string]error{
		"create": createErr, "remove": f.Remove("op", kept), "remove all": f.RemoveAll("op", kept),
		"rename": f.Rename("op", kept, filepath.Join(dir, "moved")), "mkdir": f.MkdirAll("op", filepath.Join(dir, "sub"), 0o700),
		"sync": f.SyncDir("op", dir), "sync tree": f.SyncTree("op", dir), "chmod": f.Chmod("op", kept, 0o644),
	} {
		if !errors.Is(err, fault) || !strings.HasPrefix(err.Error(), "op: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "kept" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestAnAppendedFileIsWrittenSyncedAndCut(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	f := new(durable.FS)
	for _, s := range []string{"one ", "two "} {
		file, err := f.OpenAppend("journal", path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		_, err = file.Write([]byte(s))
		if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
			t.Fatal(err)
		}
	}
	file, err := f.OpenAppend("journal", path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Truncate(4), file.Sync(), file.Close()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != "one " {
		t.Errorf("%q", got)
	}
	if _, err := f.Create("journal", path, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create what exists: %v", err)
	}
}

func TestALinkIsNotWrittenThrough(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(target, []byte("old"), 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if _, err := new(durable.FS).OpenAppend("x", link, 0o600); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("error: %v", err)
	}
}

func TestSyncTreeGoesFromTheLeavesUp(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "r")
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "a", "b"), 0o755),
		os.WriteFile(filepath.Join(root, "a", "b", "f"), nil, 0o600), os.WriteFile(filepath.Join(root, "g"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	var got []string
	f := &durable.FS{Hook: func(c durable.Call, before bool) error {
		if rel, err := filepath.Rel(root, c.Path); err == nil && before {
			got = append(got, string(c.Kind)+" "+rel)
		}
		return nil
	}}
	if err := f.SyncTree("tree", root); err != nil {
		t.Fatal(err)
	}
	want := []string{"sync a/b/f", "syncdir a/b", "syncdir a", "sync g", "syncdir ."}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func BenchmarkTheSeamWithoutAHook(b *testing.B) {
	f := new(durable.FS)
	file, err := f.OpenAppend("x", filepath.Join(b.TempDir(), "f"), 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	buf := []byte("x")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := file.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}

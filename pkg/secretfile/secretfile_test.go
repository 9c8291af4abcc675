package secretfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestASecretIsMadeOnceWithMode0600(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	calls := 0
	gen := func() (string, error) { calls++; return "s3cret", nil }
	first, made, err := ReadOrMake(path, gen)
	if err != nil || !made || first != "s3cret" {
		t.Fatalf("first: %q, %v, %v", first, made, err)
	}
	again, made, err := ReadOrMake(path, gen)
	if err != nil || made || again != "s3cret" || calls != 1 {
		t.Fatalf("again: %q, made %v, %d calls, %v", again, made, calls, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
}

func TestAnOpenEmptyOrOddSecretFileIsRefusedByName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for path, want := range map[string]string{
		write("group", "x", 0o640):                          "chmod 600",
		write("world", "x", 0o644):                          "chmod 600",
		write("empty", " \n", 0o600):                        "is empty",
		write("big", strings.Repeat("x", MaxSize+1), 0o600): "not a regular file",
		dir:                           "not a regular file",
		filepath.Join(dir, "missing"): "no such file",
	} {
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("Read(%s) = %v, want %q and the path", path, err, want)
		}
	}
}

func TestACredentialOfSystemdMayShowItsAccessListAsGroupRead(t *testing.T) { //nolint:paralleltest // sets the environment
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	inside, outside := filepath.Join(dir, "key"), filepath.Join(t.TempDir(), "key")
	for _, path := range []string{inside, outside} {
		if err := os.WriteFile(path, []byte("s3cret"), 0o440); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o440); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Read(inside); err != nil || got != "s3cret" {
		t.Errorf("a credential of mode 0440: %q, %v", got, err)
	}
	if _, err := Read(outside); err == nil {
		t.Error("another file of mode 0440 is read")
	}
	if err := os.Chmod(inside, 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(inside); err == nil {
		t.Error("a credential that everybody may read is read")
	}
}

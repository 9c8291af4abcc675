package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// countedDir gives a bundle directory's manifest a counter.
func countedDir(t *testing.T, dir string) string {
	t.Helper()
	file := filepath.Join(dir, bundle.ManifestName)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), "{", `{"counter": 1,`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func done(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := runWith(t, nil, args...)
	if code != exitDone {
		t.Fatalf("kernex %v: exit code %d: %s", args, code, errs)
	}
	return out
}

func failedWith(t *testing.T, want string, args ...string) {
	t.Helper()
	code, out, errs := runWith(t, nil, args...)
	if code == exitDone || !strings.Contains(errs, want) {
		t.Errorf("kernex %v: exit code %d, %s%s, want %q", args, code, out, errs, want)
	}
}

func TestABundleIsSignedAndVerifiedHere(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	dir, key, other := filepath.Join(tmp, "camera"), filepath.Join(tmp, "release"), filepath.Join(tmp, "other")
	done(t, "bundle", "init", dir)
	contains(t, done(t, "bundle", "keygen", "-f", key, "--no-password"), "release key", "release-key add")
	done(t, "bundle", "keygen", "-f", other, "--no-password")
	failedWith(t, "already there", "bundle", "keygen", "-f", key, "--no-password")
	if st, err := os.Stat(key + ".key"); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the secret key: %v, %v", st.Mode(), err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, bundle.ManifestName)); err != nil || strings.Contains(string(text), "counter") {
		t.Fatalf("%v: %s", err, text)
	}
	failedWith(t, "no counter", "bundle", "sign", dir, "--key", key+".key")
	countedDir(t, dir)
	failedWith(t, "not signed", "bundle", "verify", dir, "--key", key+".pub")
	contains(t, done(t, "bundle", "sign", dir, "--key", key+".key"), "signed release", bundle.SignatureName)
	contains(t, done(t, "bundle", "verify", dir, "--key", key+".pub"), "signed by key")
	failedWith(t, "not trusted", "bundle", "verify", dir, "--key", other+".pub")
	archive := filepath.Join(tmp, "camera.tar.gz")
	done(t, "bundle", "build", dir, "-f", archive)
	line := strings.Split(string(must(t, key+".pub")), "\n")[1]
	contains(t, done(t, "bundle", "verify", archive, "--key", line), "signed by key")
	done(t, "bundle", "sign", archive, "--key", other+".key")
	contains(t, done(t, "bundle", "verify", archive, "--key", other+".pub"), "signed by key")
	failedWith(t, "not trusted", "bundle", "verify", archive, "--key", key+".pub")
	failedWith(t, "--key FILE.pub", "bundle", "verify", archive)
	// What changes after the signature is another release.
	if err := os.WriteFile(filepath.Join(dir, "more.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	failedWith(t, "does not match", "bundle", "verify", dir, "--key", key+".pub")
	done(t, "bundle", "sign", dir, "--key", key+".key")
	if err := os.Chmod(key+".key", 0o644); err != nil {
		t.Fatal(err)
	}
	failedWith(t, "chmod 600", "bundle", "sign", dir, "--key", key+".key")
	// The minisign program agrees on the exact bytes that a device would get.
	manifest, err := bundle.FilledManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "m"), manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("minisign", "-V", "-p", key+".pub", "-m", filepath.Join(tmp, "m"), "-x", filepath.Join(dir, bundle.SignatureName)).CombinedOutput()
	if err != nil {
		t.Errorf("minisign -V: %v\n%s", err, out)
	}
}

func must(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAKeyWithAPasswordIsNotAskedForWithoutATerminal(t *testing.T) {
	t.Parallel()
	if tty, err := os.Open("/dev/tty"); err == nil {
		_ = tty.Close() // the tests run on a terminal: it would be asked for there
		return
	}
	failedWith(t, "KERNEX_KEY_PASSWORD", "bundle", "keygen", "-f", filepath.Join(t.TempDir(), "k"))
}

func TestReleaseKeysFromTheCommandLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	device := w.addDevice(nil, good)
	dir := countedDir(t, w.bundleDir("1.0.0"))
	key, next := filepath.Join(w.dir, "release"), filepath.Join(w.dir, "next")
	for _, k := range []string{key, next} {
		done(t, "bundle", "keygen", "-f", k, "--no-password")
	}
	_, errs := w.kernex(exitDone, "bundle", "push", dir)
	contains(t, errs, "warning: trust mode is open")
	_, errs = w.kernex(exitDone, "deploy", "--bundle", "vision", "--version", "1.0.0", "--device", device)
	contains(t, errs, "warning: trust mode is open")

	out, _ := w.kernex(exitDone, "release-key", "add", key+".pub", "--description", "ours")
	contains(t, out, "trust mode is required")
	_, errs = w.kernex(exitFailed, "bundle", "push", dir)
	contains(t, errs, "not signed")
	if strings.Contains(errs, "warning") {
		t.Errorf("a warning after the first key: %s", errs)
	}
	_, errs = w.kernex(exitFailed, "deploy", "--bundle", "vision", "--version", "1.0.0", "--device", device)
	contains(t, errs, "sign the same release and push it again")
	done(t, "bundle", "sign", dir, "--key", key+".key")
	w.kernex(exitDone, "bundle", "push", dir)
	w.kernex(exitDone, "deploy", "--bundle", "vision", "--version", "1.0.0", "--device", device)

	_, errs = w.kernex(exitFailed, "release-key", "add", next+".pub")
	contains(t, errs, "--key OLD.key")
	w.kernex(exitDone, "release-key", "add", next+".pub", "--key", key+".key")
	keys := kernexJSON[fleet.ReleaseKeys](w, exitDone, "release-key", "list")
	if len(keys.Items) != 2 || keys.Items[1].SignedBy != keys.Items[0].ID {
		t.Fatalf("%+v", keys)
	}
	w.kernex(exitDone, "release-key", "revoke", strings.ToUpper(keys.Items[0].ID))
	out, errs = w.kernex(exitDone, "release-key", "list")
	contains(t, out, "revoked", "valid", "ours")
	contains(t, errs, "trust mode: required")
	_, errs = w.kernex(exitFailed, "release-key", "revoke", keys.Items[1].ID)
	contains(t, errs, "the last one")
}

package bundle

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// minisign runs Debian's program in dir.
func minisignProgram(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("minisign")
	if err != nil {
		t.Fatalf("the minisign program is not installed (apt install minisign): %v", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func testKey(t *testing.T) SigningKey {
	t.Helper()
	key, err := NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMinisignAcceptsOurSignaturesAndReadsOurKeys(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), testKey(t)
	secret, err := key.File("")
	if err != nil {
		t.Fatal(err)
	}
	manifest := []byte("{\n  \"schema\": 1\n}\n")
	sig, err := key.Sign(manifest, time.Now(), "file:manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "k.pub"), key.Public().File())
	put(t, filepath.Join(dir, "k.key"), append(secret, '\n'))
	put(t, filepath.Join(dir, ManifestName), manifest)
	put(t, filepath.Join(dir, SignatureName), sig)
	out, err := minisignProgram(t, dir, "-V", "-p", "k.pub", "-m", ManifestName)
	if err != nil || !strings.Contains(out, "file:manifest.json") {
		t.Errorf("minisign -V: %v\n%s", err, out)
	}
	if out, err := minisignProgram(t, dir, "-S", "-s", "k.key", "-m", ManifestName, "-x", "theirs"); err != nil {
		t.Errorf("minisign -S with our key: %v\n%s", err, out)
	}
	put(t, filepath.Join(dir, ManifestName), append(manifest, ' '))
	if out, err := minisignProgram(t, dir, "-V", "-p", "k.pub", "-m", ManifestName); err == nil {
		t.Errorf("minisign took our signature for other bytes\n%s", out)
	}
}

func TestWeAcceptMinisignsSignaturesAndReadItsKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := minisignProgram(t, dir, "-G", "-W", "-p", "k.pub", "-s", "k.key"); err != nil {
		t.Fatalf("minisign -G: %v\n%s", err, out)
	}
	manifest := []byte("{\n  \"schema\": 1\n}\n")
	put(t, filepath.Join(dir, ManifestName), manifest)
	file, err := os.ReadFile(filepath.Join(dir, "k.pub"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := ParseReleaseKey(string(file))
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{"prehashed": {"-H"}, "legacy": {"-l"}} {
		if out, err := minisignProgram(t, dir, append(args, "-S", "-s", "k.key", "-m", ManifestName, "-x", name, "-t", "from "+name)...); err != nil {
			t.Fatalf("minisign -S (%s): %v\n%s", name, err, out)
		}
		sig, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if signer, err := VerifySignature(manifest, sig, []string{public.String()}); err != nil || signer != public.String() {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := VerifySignature(append(manifest, ' '), sig, []string{public.String()}); fleet.ErrorCode(err) != fleet.CodeBadSignature {
			t.Errorf("%s: other bytes: %v", name, err)
		}
	}
	secret, err := os.ReadFile(filepath.Join(dir, "k.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseSigningKey(secret, "")
	if err != nil || key.Public().ID() != public.ID() || key.Public().String() != public.String() {
		t.Fatalf("the key that minisign has made: %v", err)
	}
	sig, err := key.Sign(manifest, time.Now(), "x")
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, SignatureName), sig)
	if out, err := minisignProgram(t, dir, "-V", "-p", "k.pub", "-m", ManifestName); err != nil {
		t.Errorf("minisign -V: %v\n%s", err, out)
	}
}

func TestAKeyFileOpensWithItsPasswordOnly(t *testing.T) {
	t.Parallel()
	key := testKey(t)
	file, err := key.File("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if !Encrypted(file) {
		t.Error("the file is not encrypted")
	}
	if _, err := ParseSigningKey(file, "wrong"); !errors.Is(err, ErrPassword) {
		t.Errorf("wrong password: %v", err)
	}
	if got, err := ParseSigningKey(file, "correct horse"); err != nil || got.Public().String() != key.Public().String() {
		t.Errorf("right password: %v", err)
	}
	if _, err := ParseSigningKey([]byte("garbage"), ""); err == nil {
		t.Error("garbage was taken for a key")
	}
}

func TestAnArchiveTakesASignatureAndKeepsItsRelease(t *testing.T) {
	t.Parallel()
	dir, key := sourceDir(t, obj{"counter": 3}), testKey(t)
	var plain bytes.Buffer
	before, err := Build(dir, &plain, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	archive := plain.Bytes()
	for range 2 { // the second takes the place of the first
		sig, err := key.SignManifest(before.ManifestBytes, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var signed bytes.Buffer
		after, err := ReplaceSignature(bytes.NewReader(archive), &signed, sig, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if after.Release != before.Release || !bytes.Equal(after.Signature, sig) || after.Checksum == before.Checksum {
			t.Errorf("release %s and %s, signature %d bytes", before.Release, after.Release, len(after.Signature))
		}
		if _, err := VerifySignature(after.ManifestBytes, after.Signature, []string{key.Public().String()}); err != nil {
			t.Error(err)
		}
		archive = signed.Bytes()
		key = testKey(t)
	}
	if _, err := ReplaceSignature(bytes.NewReader(archive[:len(archive)/2]), &bytes.Buffer{}, []byte("x"), Limits{}); fleet.ErrorCode(err) != fleet.CodeBadBundle {
		t.Errorf("half an archive: %v", err)
	}
}

func TestAReleaseIsSignedOnlyWithACounter(t *testing.T) {
	t.Parallel()
	manifest, err := FilledManifest(sourceDir(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := testKey(t).SignManifest(manifest, time.Now()); fleet.ErrorCode(err) != fleet.CodeBadBundle || !strings.Contains(err.Error(), "counter") {
		t.Errorf("without a counter: %v", err)
	}
}

func TestANewKeyNeedsTheSignatureOfATrustedOne(t *testing.T) {
	t.Parallel()
	dir, old, next, foreign := t.TempDir(), testKey(t), testKey(t), testKey(t)
	file := next.Public().File()
	sign := func(k SigningKey, message []byte) string {
		sig, err := k.Sign(message, time.Now(), "key change")
		if err != nil {
			t.Fatal(err)
		}
		return string(sig)
	}
	trusted := []string{old.Public().String()}
	if signer, err := VerifyNewKey(string(file), sign(old, file), trusted); err != nil || signer.ID() != old.Public().ID() {
		t.Errorf("signed by the old key: %v", err)
	}
	for name, sig := range map[string]string{
		"none": "", "foreign": sign(foreign, file), "itself": sign(next, file), "other key": sign(old, foreign.Public().File()), "garbage": "x",
	} {
		if _, err := VerifyNewKey(string(file), sig, trusted); fleet.ErrorCode(err) != fleet.CodeBadSignature {
			t.Errorf("%s: %v", name, err)
		}
	}
	secret, err := old.File("")
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "old.key"), append(secret, '\n'))
	put(t, filepath.Join(dir, "new.pub"), file)
	if out, err := minisignProgram(t, dir, "-S", "-s", "old.key", "-m", "new.pub"); err != nil {
		t.Fatalf("minisign -S: %v\n%s", err, out)
	}
	sig, err := os.ReadFile(filepath.Join(dir, "new.pub.minisig"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyNewKey(string(file), string(sig), trusted); err != nil {
		t.Errorf("signed by minisign itself: %v", err)
	}
}

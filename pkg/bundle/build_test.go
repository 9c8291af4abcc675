package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// sourceDir writes a bundle's source directory.
func sourceDir(t testing.TB, changes obj) string {
	t.Helper()
	dir := t.TempDir()
	m := obj{"schema": 1, "name": "edge", "version": "1.0.0", "deploy": obj{"script": "deploy.sh"}}
	for k, v := range changes {
		m[k] = v
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{ManifestName: string(manifest), "deploy.sh": deploySH.body, "data/model.bin": model.body, "data/über.txt": "ü", ".git/HEAD": "x", "data/.DS_Store": "x"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, ".sh") {
			mode = 0o755
		}
		if err := os.WriteFile(path, []byte(body), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTheSameContentBuildsTheSameBytes(t *testing.T) {
	t.Parallel()
	first, second := sourceDir(t, nil), sourceDir(t, nil)
	old := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	if err := errors.Join(os.Chtimes(filepath.Join(second, "deploy.sh"), old, old), os.Chmod(filepath.Join(second, "deploy.sh"), 0o700), os.Chmod(filepath.Join(second, "data/model.bin"), 0o664)); err != nil {
		t.Fatal(err)
	}
	var a, b bytes.Buffer
	infoA, err := Build(first, &a, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	infoB, err := Build(second, &b, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) || infoA.Release != infoB.Release || infoA.Checksum != infoB.Checksum {
		t.Fatalf("%s and %s", infoA.Checksum, infoB.Checksum)
	}
	var paths []string
	for _, f := range infoA.Manifest.Files {
		paths = append(paths, f.Path+" "+f.Mode)
	}
	if got, want := strings.Join(paths, "|"), "data/model.bin 0644|data/über.txt 0644|deploy.sh 0755"; got != want {
		t.Fatalf("files %s, want %s", got, want)
	}
	filled, err := FilledManifest(first)
	if err != nil || ReleaseID(filled) != infoA.Release {
		t.Fatalf("FilledManifest is another release: %v", err)
	}
	dir := t.TempDir()
	if _, err := extractInto(dir, &a); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(dir); err != nil {
		t.Fatal(err)
	}
}

func TestSourcesThatWouldBeRefusedLaterAreRefusedByBuild(t *testing.T) {
	t.Parallel()
	remove := func(name string) func(string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	for name, tc := range map[string]struct {
		changes obj
		change  func(dir string) error
		want    string
	}{
		"no manifest":      {nil, remove(ManifestName), "manifest.json is missing"},
		"files given":      {obj{"files": []any{}}, nil, "files is filled in by the build"},
		"unknown key":      {obj{"rolback": obj{}}, nil, `unknown key "rolback"`},
		"script absent":    {nil, remove("deploy.sh"), "which is not in the bundle"},
		"script no x":      {nil, func(dir string) error { return os.Chmod(filepath.Join(dir, "deploy.sh"), 0o644) }, "not executable"},
		"script empty":     {nil, func(dir string) error { return os.Truncate(filepath.Join(dir, "deploy.sh"), 0) }, "which is empty"},
		"hidden script":    {obj{"deploy": obj{"script": ".git/HEAD"}}, nil, "which is not in the bundle"},
		"symbolic link":    {nil, func(dir string) error { return os.Symlink("deploy.sh", filepath.Join(dir, "link")) }, `"link" is a L`},
		"case collision":   {nil, func(dir string) error { return os.WriteFile(filepath.Join(dir, "Deploy.sh"), nil, 0o644) }, "same where case"},
		"bomb":             {nil, func(dir string) error { return os.WriteFile(filepath.Join(dir, "z"), make([]byte, 32<<20), 0o644) }, "more than 200:1"},
		"signed unordered": {nil, func(dir string) error { return os.WriteFile(filepath.Join(dir, SignatureName), []byte("x"), 0o644) }, "no counter"},
		"manifest a link": {nil, func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, ManifestName)), os.Symlink("deploy.sh", filepath.Join(dir, ManifestName)))
		}, "no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := sourceDir(t, tc.changes)
			if tc.change != nil {
				if err := tc.change(dir); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Build(dir, io.Discard, Limits{}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestBuildReportsAWriterThatFails(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	if _, err := Build(sourceDir(t, nil), failingWriter{full}, Limits{}); !errors.Is(err, full) {
		t.Fatal(err)
	}
	if _, err := Build(filepath.Join(t.TempDir(), "absent"), io.Discard, Limits{}); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestASignedBundleVerifiesByTheTrustedKeyOnly(t *testing.T) {
	t.Parallel()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := sourceDir(t, obj{"counter": 3})
	manifest, err := FilledManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	hashed := minisign.NewReader(bytes.NewReader(manifest)) // what the minisign program writes by default
	if _, err := io.Copy(io.Discard, hashed); err != nil {
		t.Fatal(err)
	}
	for name, sig := range map[string][]byte{"plain": minisign.Sign(private, manifest), "prehashed": hashed.Sign(private)} {
		if err := os.WriteFile(filepath.Join(dir, SignatureName), sig, 0o644); err != nil {
			t.Fatal(err)
		}
		var archive bytes.Buffer
		if _, err := Build(dir, &archive, Limits{}); err != nil {
			t.Fatal(err)
		}
		into := t.TempDir()
		info, err := extractInto(into, &archive)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := VerifySignature(info.ManifestBytes, info.Signature, []string{other.String(), public.String()})
		if err != nil || signer != public.String() {
			t.Errorf("%s: %q, %v", name, signer, err)
		}
		if checked, err := Check(into); err != nil || !bytes.Equal(checked.Signature, sig) {
			t.Errorf("%s: Check: %v", name, err)
		}
	}
}

func TestSignaturesThatProveNothingAreRefused(t *testing.T) {
	t.Parallel()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	manifest := []byte("manifest")
	sig := minisign.Sign(private, manifest)
	trusted := []string{public.String()}
	for name, tc := range map[string]struct {
		manifest, sig []byte
		trusted       []string
		want          string
	}{
		"unsigned":          {manifest, nil, trusted, "not signed"},
		"no key":            {manifest, sig, nil, "no release key"},
		"unknown key":       {manifest, sig, []string{other.String()}, "which is not trusted"},
		"unreadable key":    {manifest, sig, []string{public.String(), "RWQ="}, "cannot be read"},
		"empty key":         {manifest, sig, []string{""}, "cannot be read"},
		"other manifest":    {[]byte("Manifest"), sig, trusted, "does not match"},
		"garbage":           {manifest, []byte("garbage"), trusted, "cannot be read"},
		"truncated":         {manifest, sig[:len(sig)/2], trusted, "cannot be read"},
		"comment exchanged": {manifest, bytes.Replace(sig, []byte("trusted comment: "), []byte("trusted comment: x"), 2), trusted, "does not match"},
	} {
		_, err := VerifySignature(tc.manifest, tc.sig, tc.trusted)
		if err == nil || !strings.Contains(err.Error(), tc.want) || fleet.ErrorCode(err) != fleet.CodeBadSignature {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if k, err := ParseReleaseKey(public.String()); err != nil || k.String() != public.String() {
		t.Error(err)
	}
	for _, text := range []string{"", "RWQ=", strings.Repeat("A", 600)} {
		if _, err := ParseReleaseKey(text); fleet.ErrorCode(err) != fleet.CodeInvalid {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

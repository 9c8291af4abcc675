package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// packed builds a small bundle and stores its archive as downloaded.
func packed(t *testing.T, s *Store, version string) protocol.BundleRef {
	t.Helper()
	src := t.TempDir()
	manifest := `{"schema":1,"name":"demo","version":"` + version + `","deploy":{"script":"deploy.sh"}}`
	if err := errors.Join(os.WriteFile(filepath.Join(src, "manifest.json"), []byte(manifest), 0o600),
		os.WriteFile(filepath.Join(src, "deploy.sh"), []byte("#!/bin/sh\n"), 0o700),
		os.Mkdir(filepath.Join(src, "data"), 0o700),
		os.WriteFile(filepath.Join(src, "data", "model"), []byte("model "+version), 0o600)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	info, err := bundle.Build(src, &out, bundle.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(out.Bytes())
	ref := protocol.BundleRef{Name: "demo", Version: version, Release: info.Release, Checksum: hex.EncodeToString(sum[:]), Size: int64(out.Len())}
	if err := os.WriteFile(s.Archive(ref.Checksum), out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return ref
}

func open(t *testing.T, f *durable.FS) *Store {
	t.Helper()
	s, err := Open(f, t.TempDir(), bundle.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAnExtractedReleaseIsWholeAndCanBecomeCurrent(t *testing.T) {
	t.Parallel()
	s := open(t, &durable.FS{})
	ref := packed(t, s, "1.0.0")
	if _, err := s.Verify(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again over what is there
		if _, err := s.Extract(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Whole(ref.Release); err != nil {
		t.Fatal(err)
	}
	if current, err := s.Current(); current != "" || err != nil {
		t.Fatal(current, err)
	}
	if err := s.Switch(ref.Release); err != nil {
		t.Fatal(err)
	}
	if current, err := s.Current(); current != ref.Release || err != nil {
		t.Fatal(current, err)
	}
	if m, err := s.Manifest(ref.Release); err != nil || m.Version != "1.0.0" {
		t.Fatal(m, err)
	}
	if err := errors.Join(s.Switch(""), s.Switch("")); err != nil {
		t.Fatal(err)
	}
	if err := s.Switch(ref.Checksum); err == nil {
		t.Error("switched to a release that is not there")
	}
}

func TestDamageIsFound(t *testing.T) {
	t.Parallel()
	s := open(t, &durable.FS{})
	ref := packed(t, s, "1.0.0")
	if _, err := s.Extract(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Release(ref.Release), "data", "model"), []byte("MODEL 1.0.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Whole(ref.Release); err == nil {
		t.Error("a changed file went unseen")
	}
	if _, err := s.Whole(ref.Checksum); fleet.ErrorCode(err) != fleet.CodeNotFound {
		t.Error(err)
	}
	other := ref
	other.Release = ref.Checksum
	if _, err := s.Extract(t.Context(), other); fleet.ErrorCode(err) != fleet.CodeChecksum {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, "staging")); len(left) != 0 {
		t.Errorf("staging holds %v", left)
	}
}

func TestAFaultAtAnyCallOfExtractLeavesNoHalfReleaseUnderItsName(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		i, fired := 0, false
		armed := false
		f := &durable.FS{Hook: func(durable.Call, bool) error {
			if !armed {
				return nil
			}
			if i++; i == n+1 {
				fired = true
				return syscall.ENOSPC
			}
			return nil
		}}
		s := open(t, f)
		ref := packed(t, s, "1.0.0")
		armed = true
		_, err := s.Extract(t.Context(), ref)
		armed = false
		if !fired {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		if _, werr := s.Whole(ref.Release); werr != nil && fleet.ErrorCode(werr) != fleet.CodeNotFound {
			t.Fatalf("fault %d (%v): a half release: %v", n, err, werr)
		}
		if err := s.Tidy(nil, []string{ref.Checksum}); err != nil {
			t.Fatal(err)
		}
		if left, _ := os.ReadDir(filepath.Join(s.dir, "staging")); len(left) != 0 {
			t.Errorf("fault %d: staging holds %v", n, left)
		}
		if _, err := s.Extract(t.Context(), ref); err != nil {
			t.Fatalf("after fault %d: %v", n, err)
		}
	}
}

func TestTidyKeepsWhatIsListedAndTheCurrentRelease(t *testing.T) {
	t.Parallel()
	s := open(t, &durable.FS{})
	var refs []protocol.BundleRef
	for _, v := range []string{"1.0.0", "1.1.0", "1.2.0"} {
		ref := packed(t, s, v)
		if _, err := s.Extract(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	if err := s.Switch(refs[0].Release); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Archive(refs[1].Checksum)+".part", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Tidy([]string{refs[1].Release, ""}, []string{refs[1].Checksum}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		s.Release(refs[0].Release): true, s.Release(refs[1].Release): true, s.Release(refs[2].Release): false,
		s.Archive(refs[0].Checksum): false, s.Archive(refs[1].Checksum): true, s.Archive(refs[1].Checksum) + ".part": true,
	} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}

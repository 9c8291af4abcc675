package api_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/api"
	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// makeBundle builds a bundle whose data file holds size random bytes.
func makeBundle(t testing.TB, name, version string, size int64) []byte {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"manifest.json": fmt.Sprintf(`{"schema":1,"name":%q,"version":%q,"deploy":{"script":"deploy.sh"}}`, name, version),
		"deploy.sh":     "#!/bin/sh\nexit 0\n",
	}
	for f, content := range files {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.Create(filepath.Join(dir, "data.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(data, rand.Reader, size); err != nil {
		t.Fatal(err)
	}
	if err := data.Close(); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := bundle.Build(dir, &b, bundle.Limits{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// form wraps an archive as the one file of a multipart body.
func form(t testing.TB, archive []byte) (body io.Reader, contentType header) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part, err := w.CreateFormFile("file", "bundle.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = part.Write(archive)
	_ = w.Close()
	return &b, header{"Content-Type", w.FormDataContentType()}
}

func (e *env) upload(archive []byte, headers ...header) answer {
	e.t.Helper()
	body, kind := form(e.t, archive)
	return e.call("POST", "/bundles", body, append([]header{kind}, headers...)...)
}

// objects counts what the store holds.
func (e *env) objects() (n int) {
	e.t.Helper()
	err := filepath.WalkDir(filepath.Join(e.s3.Dir), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Base(filepath.Dir(path)) == "bundles" {
			n++
		}
		return nil
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return n
}

func TestAnUploadedBundleIsListedAndItsBytesAreInTheStore(t *testing.T) {
	t.Parallel()
	e := newEnvS3(t)
	archive := makeBundle(t, "edge", "1.0.0", 3<<20)
	sum := sha256.Sum256(archive)
	checksum := hex.EncodeToString(sum[:])
	var b fleet.Bundle
	e.upload(archive).into(http.StatusCreated, &b)
	if b.Name != "edge" || b.Version != "1.0.0" || b.Checksum != checksum || b.Size != int64(len(archive)) || len(b.Release) != 64 || b.PartSize != 1<<20 || b.SignedBy != "" {
		t.Errorf("bundle: %+v", b)
	}
	stored, err := e.db.Bundle(t.Context(), b.ID)
	if err != nil || len(stored.Parts) != 4 {
		t.Fatalf("parts: %v, %v", stored.Parts, err)
	}
	for i, want := range stored.Parts {
		part := sha256.Sum256(archive[i<<20 : min((i+1)<<20, len(archive))])
		if hex.EncodeToString(part[:]) != want {
			t.Errorf("part %d: digest %s", i, want)
		}
	}
	var list fleet.List[fleet.Bundle]
	e.call("GET", "/bundles"+query("name", "edge"), nil).into(http.StatusOK, &list)
	if list.Total != 1 || list.Items[0].ID != b.ID || list.Items[0].Manifest != nil {
		t.Errorf("list: %+v", list)
	}
	e.call("GET", "/bundles"+query("name", "other"), nil).into(http.StatusOK, &list)
	if list.Total != 0 {
		t.Errorf("list of another name: %+v", list)
	}
	e.call("GET", "/bundles/"+b.ID, nil).into(http.StatusOK, &b)
	if b.Manifest == nil {
		t.Error("no manifest in the one bundle's answer")
	}
	a := e.call("GET", "/bundles/"+b.ID+"/download", nil).into(http.StatusFound, nil)
	resp, err := http.Get(a.header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, archive) {
		t.Errorf("download: %d bytes, %v", len(got), err)
	}
}

func TestChecksumVerifyReadsTheStore(t *testing.T) {
	t.Parallel()
	e := newEnvS3(t)
	archive := makeBundle(t, "edge", "1.0.0", 1000)
	var b fleet.Bundle
	e.upload(archive).into(http.StatusCreated, &b)
	valid := func(sum string) bool {
		t.Helper()
		var v struct{ Valid bool }
		e.call("POST", "/bundles/"+b.ID+"/verify", map[string]string{"checksum_sha256": sum}).into(http.StatusOK, &v)
		return v.Valid
	}
	if !valid(b.Checksum) {
		t.Error("the right checksum is not valid")
	}
	if valid(b.Release) {
		t.Error("another checksum is valid")
	}
	stored, err := e.db.Bundle(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.store.Put(t.Context(), stored.ObjectKey, bytes.NewReader(append(archive, 0)), -1); err != nil {
		t.Fatal(err)
	}
	if valid(b.Checksum) {
		t.Error("the row's checksum is valid although the store's bytes have changed")
	}
	e.call("POST", "/bundles/"+b.ID+"/verify", map[string]string{"checksum_sha256": "abc"}).refused(http.StatusBadRequest, fleet.CodeInvalid)
}

func TestTheSameReleaseAgainIsTheSameBundle(t *testing.T) {
	t.Parallel()
	e := newEnvS3(t)
	archive := makeBundle(t, "edge", "1.0.0", 1000)
	var first, second fleet.Bundle
	e.upload(archive).into(http.StatusCreated, &first)
	e.upload(archive).into(http.StatusOK, &second)
	if first.ID != second.ID {
		t.Errorf("%s, then %s", first.ID, second.ID)
	}
	detail := e.upload(makeBundle(t, "edge", "1.0.0", 1000)).refused(http.StatusConflict, fleet.CodeConflict)
	t.Log(detail)
	if n := e.objects(); n != 1 {
		t.Errorf("%d objects", n)
	}
}

func TestARefusedUploadLeavesNothing(t *testing.T) {
	t.Parallel()
	e := newEnvS3(t, func(c *api.Config) { c.MaxBundle = 4 << 20 })
	good := makeBundle(t, "edge", "1.0.0", 2<<20)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	twoFiles := func() (io.Reader, header) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		for range 2 {
			p, _ := w.CreateFormFile("file", "x")
			_, _ = p.Write(good)
		}
		_ = w.Close()
		return &b, header{"Content-Type", w.FormDataContentType()}
	}
	otherName := func() (io.Reader, header) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		p, _ := w.CreateFormFile("bundle", "x")
		_, _ = p.Write(good)
		_ = w.Close()
		return &b, header{"Content-Type", w.FormDataContentType()}
	}
	cut := func() (io.Reader, header) {
		b, kind := form(t, good)
		return io.LimitReader(b, int64(len(good))), kind
	}
	of := func(archive []byte) func() (io.Reader, header) {
		return func() (io.Reader, header) { return form(t, archive) }
	}
	for _, c := range []struct {
		name   string
		body   func() (io.Reader, header)
		status int
		code   fleet.Code
	}{
		{"one bit flipped", of(flipped), 422, ""},
		{"truncated", of(good[:len(good)-100]), 422, fleet.CodeBadBundle},
		{"trailing bytes", of(append(bytes.Clone(good), 'x')), 422, fleet.CodeBadBundle},
		{"second gzip member", of(append(bytes.Clone(good), good...)), 422, fleet.CodeBadBundle},
		{"no archive", of([]byte("hello")), 422, fleet.CodeBadBundle},
		{"empty", of(nil), 422, fleet.CodeBadBundle},
		{"above the limit", of(makeBundle(t, "edge", "1.0.0", 5<<20)), 413, fleet.CodeTooLarge},
		{"two files", twoFiles, 400, fleet.CodeInvalid},
		{"another part first", otherName, 400, fleet.CodeInvalid},
		{"the multipart body ends early", cut, 400, fleet.CodeInvalid},
		{"not multipart", func() (io.Reader, header) {
			return bytes.NewReader(good), header{"Content-Type", "application/gzip"}
		}, 415, fleet.CodeUnsupported},
	} {
		body, kind := c.body()
		a := e.call("POST", "/bundles", body, kind)
		if c.code == "" {
			c.code = fleet.CodeBadBundle
			if bytes.Contains(a.body, []byte(`"checksum"`)) {
				c.code = fleet.CodeChecksum
			}
		}
		t.Logf("%s: %s", c.name, a.refused(c.status, c.code))
		if n := e.count(`SELECT count(*) FROM bundles`); n != 0 {
			t.Fatalf("%s: %d bundles", c.name, n)
		}
		if n := e.objects(); n != 0 {
			t.Fatalf("%s: %d objects in the store", c.name, n)
		}
	}
	e.upload(good).into(http.StatusCreated, nil)
	if n := e.objects(); n != 1 {
		t.Errorf("%d objects after a good upload: the count above counts nothing", n)
	}
}

func TestAViewerCannotUpload(t *testing.T) {
	t.Parallel()
	e := newEnvS3(t)
	e.upload(makeBundle(t, "edge", "1.0.0", 10), as(e.token(fleet.RoleViewer, ""))).refused(http.StatusForbidden, fleet.CodeForbidden)
	if n := e.objects(); n != 0 {
		t.Errorf("%d objects", n)
	}
}

func TestABundleInUseCannotBeDeleted(t *testing.T) {
	t.Parallel()
	e := newEnvS3(t)
	var used, free fleet.Bundle
	e.upload(makeBundle(t, "edge", "1.0.0", 10)).into(http.StatusCreated, &used)
	e.upload(makeBundle(t, "edge", "2.0.0", 10)).into(http.StatusCreated, &free)
	d := e.device(nil)
	var dep fleet.Deployment
	e.call("POST", "/deployments", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{d.ID}}).into(http.StatusCreated, &dep)
	detail := e.call("DELETE", "/bundles/"+used.ID, nil).refused(http.StatusConflict, fleet.CodeConflict)
	if !bytes.Contains([]byte(detail), []byte(dep.ID)) {
		t.Errorf("the reason %q does not name %s", detail, dep.ID)
	}
	e.call("DELETE", "/bundles/"+free.ID, nil).into(http.StatusNoContent, nil)
	e.call("GET", "/bundles/"+free.ID, nil).refused(http.StatusNotFound, fleet.CodeNotFound)
	if n := e.objects(); n != 1 {
		t.Errorf("%d objects", n)
	}
}

func TestAnUploadsKeyIsBoundToItsBytes(t *testing.T) {
	t.Parallel()
	e := newEnvS3(t)
	key := header{"Idempotency-Key", "upload-1"}
	archive := makeBundle(t, "edge", "1.0.0", 10)
	var first, again fleet.Bundle
	e.upload(archive, key).into(http.StatusCreated, &first)
	e.upload(archive, key).into(http.StatusCreated, &again)
	if first.ID != again.ID {
		t.Errorf("%s, then %s", first.ID, again.ID)
	}
	e.upload(makeBundle(t, "edge", "2.0.0", 10), key).refused(http.StatusConflict, fleet.CodeIdempotency)
	if n := e.objects(); n != 1 {
		t.Errorf("%d objects", n)
	}
}

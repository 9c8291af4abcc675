package objectstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/objectstore"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/pkg/testkit/s3test"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func config(gw *s3test.Store) objectstore.Config {
	return objectstore.Config{Endpoint: gw.URL, Region: gw.Region, AccessKey: gw.AccessKey,
		SecretKey: gw.SecretKey, Bucket: "bundles", AllowInsecure: true}
}

func newStore(t *testing.T, cfg objectstore.Config) *objectstore.Store {
	t.Helper()
	s, err := objectstore.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it exists
		if err := s.EnsureBucket(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return s
}

// content is n bytes that do not repeat.
func content(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1}), n)
}

func sum(n int64) string {
	h := sha256.New()
	_, _ = io.Copy(h, content(n))
	return hex.EncodeToString(h.Sum(nil))
}

func TestWhatWasPutCanBeReadBack(t *testing.T) {
	t.Parallel()
	s := newStore(t, config(s3test.Start(t)))
	const part = 8 << 20
	for _, n := range []int64{0, 1, part - 1, part, part + 1, 2*part + 3} {
		for _, announced := range []int64{n, -1} {
			key := objectstore.NewKey()
			put, err := s.Put(t.Context(), key, content(n), announced)
			if err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			stat, err := s.Stat(t.Context(), key)
			if err != nil || stat.Size != n || put.Size != n || stat.ETag != put.ETag || stat.Key != key {
				t.Errorf("%d bytes: put %+v, stat %+v, %v", n, put, stat, err)
			}
			got, size, err := s.Checksum(t.Context(), key)
			if err != nil || size != n || got != sum(n) {
				t.Errorf("%d bytes: %d with checksum %s, %v", n, size, got, err)
			}
		}
	}
}

func TestAnUploadWhoseReaderFailsStoresNothing(t *testing.T) {
	t.Parallel()
	s := newStore(t, config(s3test.Start(t)))
	bad := fleet.Errorf(fleet.CodeBadBundle, "an entry leads outside")
	for _, n := range []int64{10, 20 << 20} {
		key := objectstore.NewKey()
		_, err := s.Put(t.Context(), key, io.MultiReader(content(n), failing{bad}), -1)
		if !errors.Is(err, bad) {
			t.Errorf("%d bytes: %v", n, err)
		}
		if _, err := s.Stat(t.Context(), key); fleet.ErrorCode(err) != fleet.CodeNotFound {
			t.Errorf("%d bytes: the object: %v", n, err)
		}
	}
	if n, err := s.Sweep(t.Context(), time.Now().Add(time.Hour), keepNothing); n != 0 || err != nil {
		t.Errorf("left behind: %d, %v", n, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func keepNothing(string) bool { return false }

func TestAnUploadOfAnotherLengthThanAnnouncedStoresNothing(t *testing.T) {
	t.Parallel()
	s := newStore(t, config(s3test.Start(t)))
	for _, n := range []int64{10, 20 << 20} {
		key := objectstore.NewKey()
		if _, err := s.Put(t.Context(), key, content(n), n+1); err == nil {
			t.Errorf("%d bytes: accepted", n)
		}
		if _, err := s.Stat(t.Context(), key); fleet.ErrorCode(err) != fleet.CodeNotFound {
			t.Errorf("%d bytes: the object: %v", n, err)
		}
	}
}

func get(t *testing.T, rawURL string, header map[string]string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, rawURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestAPresignedURLServesRangesOfTheSameVersionOnly(t *testing.T) {
	t.Parallel()
	s := newStore(t, config(s3test.Start(t)))
	key := objectstore.NewKey()
	info, err := s.Put(t.Context(), key, strings.NewReader("0123456789"), 10)
	if err != nil {
		t.Fatal(err)
	}
	signed, expires, err := s.Presign(t.Context(), key, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(expires); d > objectstore.MaxPresign || d < objectstore.MaxPresign-time.Minute {
		t.Errorf("expires in %v", d)
	}
	etag := `"` + info.ETag + `"`
	if code, body := get(t, signed, nil); code != http.StatusOK || body != "0123456789" {
		t.Errorf("whole: %d %q", code, body)
	}
	if code, body := get(t, signed, map[string]string{"Range": "bytes=4-", "If-Match": etag}); code != http.StatusPartialContent || body != "456789" {
		t.Errorf("range: %d %q", code, body)
	}
	if _, err := s.Put(t.Context(), key, strings.NewReader("abcdefghij"), 10); err != nil {
		t.Fatal(err)
	}
	if code, body := get(t, signed, map[string]string{"Range": "bytes=4-", "If-Match": etag}); code != http.StatusPreconditionFailed {
		t.Errorf("range of another version: %d %q", code, body)
	}
}

func TestAnExpiredOrChangedPresignedURLIsRefused(t *testing.T) {
	t.Parallel()
	s := newStore(t, config(s3test.Start(t)))
	key, other := objectstore.NewKey(), objectstore.NewKey()
	for _, k := range []string{key, other} {
		if _, err := s.Put(t.Context(), k, strings.NewReader("x"), 1); err != nil {
			t.Fatal(err)
		}
	}
	signed, _, err := s.Presign(t.Context(), key, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if code, body := get(t, strings.Replace(signed, key, other, 1), nil); code != http.StatusForbidden {
		t.Errorf("another key: %d %s", code, body)
	}
	if code, body := get(t, strings.Replace(signed, "X-Amz-Expires=60", "X-Amz-Expires=600", 1), nil); code != http.StatusForbidden {
		t.Errorf("a longer life: %d %s", code, body)
	}
	short, _, err := s.Presign(t.Context(), key, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, func() error {
		if code, body := get(t, short, nil); code != http.StatusForbidden {
			return fmt.Errorf("after its end: %d %s", code, body)
		}
		return nil
	})
}

func TestPresigningUsesThePublicHostAndAsksNobody(t *testing.T) {
	t.Parallel()
	s, err := objectstore.New(objectstore.Config{Endpoint: "https://127.0.0.1:1", PublicURL: "https://files.example.com",
		Region: "eu-central-1", AccessKey: "a", SecretKey: "b", Bucket: "bundles"})
	if err != nil {
		t.Fatal(err)
	}
	signed, _, err := s.Presign(t.Context(), "bundles/x", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(signed)
	if err != nil || u.Scheme != "https" || u.Host != "files.example.com" || u.Path != "/bundles/bundles/x" {
		t.Errorf("%s, %v", signed, err)
	}
}

func TestSweepRemovesOldObjectsThatNobodyClaims(t *testing.T) {
	t.Parallel()
	s := newStore(t, config(s3test.Start(t)))
	kept, orphan := objectstore.NewKey(), objectstore.NewKey()
	for _, k := range []string{kept, orphan} {
		if _, err := s.Put(t.Context(), k, strings.NewReader("x"), 1); err != nil {
			t.Fatal(err)
		}
	}
	keep := func(key string) bool { return key == kept }
	if n, err := s.Sweep(t.Context(), time.Now().Add(-time.Hour), keep); n != 0 || err != nil {
		t.Errorf("young objects: %d, %v", n, err)
	}
	if n, err := s.Sweep(t.Context(), time.Now().Add(time.Hour), keep); n != 1 || err != nil {
		t.Errorf("old objects: %d, %v", n, err)
	}
	if _, err := s.Stat(t.Context(), kept); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), orphan); err != nil {
		t.Errorf("delete what is gone: %v", err)
	}
}

func TestAStoreThatIsAwayIsUnavailable(t *testing.T) {
	t.Parallel()
	gw := s3test.Start(t)
	s := newStore(t, config(gw))
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := gw.Gateway.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := s.Ready(t.Context()); fleet.ErrorCode(err) != fleet.CodeUnavailable {
		t.Errorf("ready: %v", err)
	}
	if _, err := s.Put(t.Context(), objectstore.NewKey(), strings.NewReader("x"), 1); fleet.ErrorCode(err) != fleet.CodeUnavailable {
		t.Errorf("put: %v", err)
	}
}

func TestABadConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	good := objectstore.Config{Endpoint: "https://s3.example.com", AccessKey: "a", SecretKey: "b", Bucket: "bundles"}
	if _, err := objectstore.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*objectstore.Config){
		"http endpoint":   func(c *objectstore.Config) { c.Endpoint = "http://s3.example.com" },
		"http public URL": func(c *objectstore.Config) { c.PublicURL = "http://s3.example.com" },
		"no scheme":       func(c *objectstore.Config) { c.Endpoint = "s3.example.com:443" },
		"a path":          func(c *objectstore.Config) { c.PublicURL = "https://example.com/s3" },
		"no secret":       func(c *objectstore.Config) { c.SecretKey = "" },
		"no bucket":       func(c *objectstore.Config) { c.Bucket = "" },
	} {
		cfg := good
		change(&cfg)
		if _, err := objectstore.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// uploadEnv lengthens the test below: the size of the upload in MiB.
const uploadEnv = "KERNEX_TEST_UPLOAD_MIB"

// Not parallel: it watches the memory of the whole process.
func TestMemoryDoesNotGrowWithTheUpload(t *testing.T) {
	mib := int64(128)
	if v := os.Getenv(uploadEnv); v != "" {
		var err error
		if mib, err = strconv.ParseInt(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	s := newStore(t, config(s3test.Start(t)))
	before := rss(t, "VmRSS")
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Fatalf("reset the peak: %v", err)
	}
	info, err := s.Put(t.Context(), objectstore.NewKey(), content(mib<<20), -1)
	if err != nil {
		t.Fatal(err)
	}
	grown := rss(t, "VmHWM") - before
	t.Logf("%d MiB uploaded, peak growth %d KiB", info.Size>>20, grown)
	if grown > memoryFactor*64<<10 {
		t.Errorf("resident memory grew by %d KiB at its peak", grown)
	}
}

// rss reads a figure of /proc/self/status in KiB.
func rss(t *testing.T, field string) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(raw) {
		if rest, ok := strings.CutPrefix(string(line), field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s", field)
	return 0
}

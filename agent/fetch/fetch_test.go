package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

const tag = "abc"

func archive(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func refTo(data []byte, part int64) protocol.BundleRef {
	sum := sha256.Sum256(data)
	ref := protocol.BundleRef{Checksum: hex.EncodeToString(sum[:]), Size: int64(len(data)), PartSize: part, ETag: tag}
	for i := int64(0); part > 0 && i < ref.Size; i += part {
		s := sha256.Sum256(data[i:min(i+part, ref.Size)])
		ref.Parts = append(ref.Parts, base64.RawURLEncoding.EncodeToString(s[:]))
	}
	return ref
}

func serve(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"`+tag+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
}

type bench struct {
	*Fetcher
	dir     string
	renewed atomic.Int32
	renew   func(context.Context) (protocol.BundleRef, error)
}

func fetcher(t testing.TB, f *durable.FS) *bench {
	dir := t.TempDir()
	return &bench{dir: dir, Fetcher: &Fetcher{FS: f, Path: func(sum string) string { return filepath.Join(dir, sum) },
		Client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, Log: zerolog.Nop(), Backoff: time.Millisecond}}
}

func (b *bench) fetch(ctx context.Context, ref protocol.BundleRef) error {
	return b.Fetch(ctx, ref, 0, func(ctx context.Context) (protocol.BundleRef, error) {
		b.renewed.Add(1)
		return b.renew(ctx)
	}, func(int64) {})
}

func (b *bench) holds(t *testing.T, ref protocol.BundleRef, data []byte) {
	t.Helper()
	got, err := os.ReadFile(b.Path(ref.Checksum))
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the archive: %d bytes, %v", len(got), err)
	}
	if _, err := os.Stat(b.Path(ref.Checksum) + ".part"); err == nil {
		t.Error("the part file is left")
	}
}

func TestADownloadGoesOnAfterEveryKindOfInterruption(t *testing.T) {
	t.Parallel()
	data := archive(1 << 20)
	for _, part := range []int64{0, 256 << 10} {
		var requests atomic.Int32
		var ranges []string
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n := requests.Add(1)
			ranges = append(ranges, r.Header.Get("Range"))
			if n > 1 && r.Header.Get("If-Match") != `"`+tag+`"` {
				t.Errorf("If-Match %q", r.Header.Get("If-Match"))
			}
			switch n {
			case 1: // cut in the middle
				w.Header().Set("Content-Length", strconv.Itoa(len(data)))
				_, _ = w.Write(data[:300<<10])
				panic(http.ErrAbortHandler)
			case 2:
				w.WriteHeader(http.StatusServiceUnavailable)
			default:
				serve(data)(w, r)
			}
		}))
		b := fetcher(t, &durable.FS{})
		ref := refTo(data, part)
		ref.URL = s.URL
		if err := b.fetch(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		s.Close()
		b.holds(t, ref, data)
		if last := ranges[len(ranges)-1]; last == "" || last == "bytes=0-" {
			t.Errorf("it began again: %q", ranges)
		}
		if err := b.fetch(t.Context(), ref); err != nil {
			t.Errorf("what is there is fetched again: %v", err)
		}
	}
}

func TestWhateverIsOnDiskTheResultIsRight(t *testing.T) {
	t.Parallel()
	data := archive(200_000)
	s := httptest.NewServer(serve(data))
	defer s.Close()
	ref := refTo(data, 16<<10)
	ref.URL = s.URL
	b := fetcher(t, &durable.FS{})
	rapid.Check(t, func(rt *rapid.T) {
		left := bytes.Clone(data[:rapid.IntRange(0, len(data)).Draw(rt, "left")])
		if len(left) > 0 && rapid.Bool().Draw(rt, "damage") {
			left[rapid.IntRange(0, len(left)-1).Draw(rt, "at")] ^= 1
		}
		_ = os.Remove(b.Path(ref.Checksum))
		if err := os.WriteFile(b.Path(ref.Checksum)+".part", left, 0o600); err != nil {
			rt.Fatal(err)
		}
		if err := b.fetch(t.Context(), ref); err != nil {
			rt.Fatal(err)
		}
		b.holds(t, ref, data)
	})
}

func TestARefusedURLIsRenewed(t *testing.T) {
	t.Parallel()
	data := archive(50_000)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("fresh") == "" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		serve(data)(w, r)
	}))
	defer s.Close()
	b := fetcher(t, &durable.FS{})
	ref := refTo(data, 0)
	b.renew = func(context.Context) (protocol.BundleRef, error) {
		fresh := ref
		fresh.URL = s.URL + "?fresh=1"
		return fresh, nil
	}
	for _, url := range []string{s.URL, ""} { // refused, and none at all
		_ = os.Remove(b.Path(ref.Checksum))
		ref.URL = url
		if err := b.fetch(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		b.holds(t, ref, data)
	}
	if n := b.renewed.Load(); n != 2 {
		t.Errorf("renewed %d times", n)
	}
}

func TestFreshURLsThatAreRefusedEndAtTheDeadlineWithTheirOwnCode(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer s.Close()
	b := fetcher(t, &durable.FS{})
	b.Backoff = 200 * time.Millisecond
	ref := refTo(archive(10), 0)
	ref.URL = s.URL
	b.renew = func(context.Context) (protocol.BundleRef, error) { return ref, nil }
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := b.fetch(ctx, ref); fleet.ErrorCode(err) != fleet.CodeURLRefused {
		t.Fatal(err)
	}
	if n := b.renewed.Load(); n < 3 || n > 30 {
		t.Errorf("renewed %d times", n)
	}
}

func TestErrorsThatNoRetryCuresEndTheDownload(t *testing.T) {
	t.Parallel()
	data := archive(100_000)
	other := archive(100_001)[:100_000]
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		want    fleet.Code
	}{
		"404":         {http.NotFound, fleet.CodeNotFound},
		"teapot":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }, fleet.CodeDownload},
		"shorter":     {serve(data[:50_000]), fleet.CodeChecksum},
		"too long":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(archive(200_000)) }, fleet.CodeChecksum},
		"other bytes": {serve(other), fleet.CodeChecksum},
		"changed":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPreconditionFailed) }, fleet.CodeDownload},
		"wrong range": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-9/10")
			w.WriteHeader(http.StatusPartialContent)
		}, fleet.CodeDownload},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int32
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				tc.handler(w, r)
			}))
			defer s.Close()
			b := fetcher(t, &durable.FS{})
			ref := refTo(data, 16<<10)
			if name == "too long" {
				ref = refTo(data, 0)
			}
			ref.URL = s.URL
			b.renew = func(context.Context) (protocol.BundleRef, error) { return ref, nil }
			if err := b.fetch(t.Context(), ref); fleet.ErrorCode(err) != tc.want || strings.Contains(err.Error(), s.URL) {
				t.Fatal(err)
			}
			if n := requests.Load(); n > maxBadParts {
				t.Errorf("%d requests", n)
			}
		})
	}
	b := fetcher(t, &durable.FS{})
	ref := refTo(data, 0)
	ref.URL = "file:///etc/passwd"
	if err := b.fetch(t.Context(), ref); fleet.ErrorCode(err) != fleet.CodeDownload {
		t.Error(err)
	}
	ref.Parts, ref.PartSize = []string{"x"}, 5
	if err := b.fetch(t.Context(), ref); fleet.ErrorCode(err) != fleet.CodeInvalid {
		t.Error(err)
	}
}

func TestAFullDiskIsNamed(t *testing.T) {
	t.Parallel()
	data := archive(100_000)
	s := httptest.NewServer(serve(data))
	defer s.Close()
	b := fetcher(t, &durable.FS{Hook: func(c durable.Call, before bool) error {
		if c.Op == "download" && c.Kind == durable.Write && before {
			return syscall.ENOSPC
		}
		return nil
	}})
	ref := refTo(data, 0)
	ref.URL = s.URL
	if err := b.fetch(t.Context(), ref); fleet.ErrorCode(err) != fleet.CodeNoSpace {
		t.Fatal(err)
	}
}

func TestACancelledDownloadEndsAtOnceAndKeepsItsParts(t *testing.T) {
	t.Parallel()
	data := archive(300_000)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(data[:200_000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer s.Close()
	b := fetcher(t, &durable.FS{})
	ref := refTo(data, 64<<10)
	ref.URL = s.URL
	stop := errors.New("cancelled by the operator")
	err := b.Fetch(ctx, ref, 0, b.renew, func(n int64) {
		if n == 200_000 {
			cancel(stop)
		}
	})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	if info, err := os.Stat(b.Path(ref.Checksum) + ".part"); err != nil || info.Size() != 200_000 {
		t.Fatal(info, err)
	}
}

func BenchmarkLoopback(b *testing.B) {
	data := archive(64 << 20)
	s := httptest.NewServer(serve(data))
	defer s.Close()
	f := fetcher(b, &durable.FS{})
	ref := refTo(data, fleet.PartSize(int64(len(data))))
	ref.URL = s.URL
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		_ = os.Remove(f.Path(ref.Checksum))
		if err := f.fetch(b.Context(), ref); err != nil {
			b.Fatal(err)
		}
	}
}

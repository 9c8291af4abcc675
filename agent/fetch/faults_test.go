package fetch

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestABundleThatCannotFitIsRefusedBeforeTheDownload(t *testing.T) {
	t.Parallel()
	var st syscall.Statfs_t
	if err := syscall.Statfs(t.TempDir(), &st); err != nil {
		t.Fatal(err)
	}
	free := int64(st.Bavail) * int64(st.Bsize) //nolint:gosec,unconvert // Bsize is 32 bits wide on ARM
	var requests atomic.Int32
	data := archive(1000)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		serve(data)(w, r)
	}))
	defer s.Close()
	for name, tc := range map[string]struct {
		change func(*protocol.BundleRef)
		want   fleet.Code
	}{
		"expanded": {func(r *protocol.BundleRef) { r.Expanded = free/2 - free/50 }, fleet.CodeNoSpace}, // twice that fits, a tenth more does not
		"size":     {func(r *protocol.BundleRef) { r.Size = free - free/50 }, fleet.CodeNoSpace},
		"files":    {func(r *protocol.BundleRef) { r.Files = 1 << 40 }, fleet.CodeNoSpace},
		"bomb":     {func(r *protocol.BundleRef) { r.Expanded = 1<<63 - 1 }, fleet.CodeTooLarge},
		"limit":    {func(r *protocol.BundleRef) { r.Size = 2e15 }, fleet.CodeTooLarge},
	} {
		b := fetcher(t, &durable.FS{})
		b.MaxBytes = 1e15
		ref := refTo(data, 0)
		ref.URL = s.URL
		tc.change(&ref)
		if err := b.fetch(t.Context(), ref); fleet.ErrorCode(err) != tc.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestAFullDiskLeavesNothingOfTheDownload(t *testing.T) {
	t.Parallel()
	data := archive(100_000)
	s := httptest.NewServer(serve(data))
	defer s.Close()
	b := fetcher(t, &durable.FS{Hook: func(c durable.Call, before bool) error {
		if c.Kind == durable.Write && before {
			if info, err := os.Stat(c.Path); err == nil && info.Size() > 40_000 {
				return syscall.ENOSPC
			}
		}
		return nil
	}})
	ref := refTo(data, 16<<10)
	ref.URL = s.URL
	if err := b.Fetch(t.Context(), ref, 64<<10, nil, func(int64) {}); fleet.ErrorCode(err) != fleet.CodeNoSpace {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(b.dir); err != nil || len(left) != 0 {
		t.Errorf("left over: %v %v", left, err)
	}
}

// interrupted serves one answer of another kind at the request of that number,
// counted from 1, after a first answer that is cut.
func interrupted(data []byte, at map[int32]http.HandlerFunc) (http.HandlerFunc, *[]string) {
	var requests atomic.Int32
	ranges := &[]string{}
	return func(w http.ResponseWriter, r *http.Request) {
		n := requests.Add(1)
		*ranges = append(*ranges, r.Header.Get("Range")+" "+r.Header.Get("If-Match"))
		if h := at[n]; h != nil {
			h(w, r)
			return
		}
		if n == 1 {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			_, _ = w.Write(data[:300<<10])
			panic(http.ErrAbortHandler)
		}
		serve(data)(w, r)
	}, ranges
}

func TestACaptivePortalDestroysNothing(t *testing.T) {
	t.Parallel()
	data := archive(1 << 20)
	portal := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte("<html>please log in</html>"))
		}
	}
	h, ranges := interrupted(data, map[int32]http.HandlerFunc{2: portal(http.StatusOK), 3: portal(http.StatusNotFound)})
	s := httptest.NewServer(h)
	defer s.Close()
	b := fetcher(t, &durable.FS{})
	ref := refTo(data, 64<<10)
	ref.URL = s.URL
	if err := b.fetch(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	b.holds(t, ref, data)
	if got, want := *ranges, "bytes=307200- \"abc\""; len(got) != 4 || got[3] != want {
		t.Errorf("requests %q, the last should be %q", got, want)
	}
}

func TestAChangedObjectIsResumedFromWhatItsDigestsConfirmElseFromTheStart(t *testing.T) {
	t.Parallel()
	data := archive(1 << 20)
	for _, tc := range []struct {
		part int64
		want string
	}{{128 << 10, "bytes=262144- \"new\""}, {0, " \"new\""}} {
		h, ranges := interrupted(data, map[int32]http.HandlerFunc{2: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPreconditionFailed) }})
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-Match") == `"new"` {
				*ranges = append(*ranges, r.Header.Get("Range")+" "+r.Header.Get("If-Match"))
				r.Header.Del("If-Match")
				serve(data)(w, r)
				return
			}
			h(w, r)
		}))
		b := fetcher(t, &durable.FS{})
		ref := refTo(data, tc.part)
		ref.URL = s.URL
		b.renew = func(context.Context) (protocol.BundleRef, error) {
			fresh := ref
			fresh.ETag = "new"
			return fresh, nil
		}
		if err := b.fetch(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		s.Close()
		b.holds(t, ref, data)
		if got := (*ranges)[len(*ranges)-1]; got != tc.want || b.renewed.Load() != 1 {
			t.Errorf("part %d: requests %q, renewed %d times", tc.part, *ranges, b.renewed.Load())
		}
	}
}

func TestAServerThatIgnoresRangesIsReadFromTheStart(t *testing.T) {
	t.Parallel()
	data := archive(1 << 20)
	for _, part := range []int64{0, 100_000} {
		h, _ := interrupted(data, map[int32]http.HandlerFunc{2: func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(data) }})
		s := httptest.NewServer(h)
		b := fetcher(t, &durable.FS{})
		ref := refTo(data, part)
		ref.URL = s.URL
		if err := b.fetch(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		s.Close()
		b.holds(t, ref, data)
	}
}

func TestAConnectionThatIsTooSlowIsGivenUpAndAnotherOneTakesOver(t *testing.T) {
	t.Parallel()
	data := archive(200_000)
	var requests atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) > 1 {
			serve(data)(w, r)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		drip := time.NewTicker(20 * time.Millisecond) // 500 bytes a second, where 10,000 are asked for
		defer drip.Stop()
		for i := 0; ; i += 10 {
			_, _ = w.Write(data[i : i+10])
			w.(http.Flusher).Flush()
			select {
			case <-drip.C:
			case <-r.Context().Done():
				return
			}
		}
	}))
	defer s.Close()
	b := fetcher(t, &durable.FS{})
	b.MinRate, b.Window = 10_000, 300*time.Millisecond
	ref := refTo(data, 16<<10)
	ref.URL = s.URL
	if err := b.fetch(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	b.holds(t, ref, data)
}

func TestAHalfOpenConnectionIsNoticedAlsoBeforeItsAnswer(t *testing.T) {
	t.Parallel()
	data := archive(200_000)
	s := httptest.NewServer(serve(data))
	defer s.Close()
	p := testkit.NewProxy(t, strings.TrimPrefix(s.URL, "http://"))
	b := fetcher(t, &durable.FS{})
	b.MinRate, b.Window = 1, 200*time.Millisecond
	ref := refTo(data, 16<<10)
	ref.URL = "http://" + p.Addr()
	p.Blackhole()
	done := make(chan error, 1)
	go func() { done <- b.fetch(t.Context(), ref) }()
	testkit.Eventually(t, 10*time.Second, func() bool { return p.Opened() >= 2 })
	p.Restore()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.holds(t, ref, data)
}

func TestTheBandwidthCapHoldsAndIsNotTakenForADeadConnection(t *testing.T) {
	t.Parallel()
	data := archive(12_000)
	var requests atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		serve(data)(w, r)
	}))
	defer s.Close()
	b := fetcher(t, &durable.FS{})
	b.MinRate, b.Window = 2000, 600*time.Millisecond
	ref := refTo(data, 0)
	ref.URL = s.URL
	begun := time.Now()
	if err := b.Fetch(t.Context(), ref, 8000, nil, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < time.Second || took > 5*time.Second { // 1.25 s with the first chunk free
		t.Errorf("12,000 bytes at 8,000 a second took %s", took)
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestPartsThatAreDamagedNowAndThenAreFetchedAgain(t *testing.T) {
	t.Parallel()
	data := archive(1 << 20)
	var sent atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve(data)(flipper{w, &sent, 400_000}, r)
	}))
	defer s.Close()
	b := fetcher(t, &durable.FS{})
	ref := refTo(data, 64<<10)
	ref.URL = s.URL
	if err := b.fetch(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	b.holds(t, ref, data)
}

// flipper flips a bit of each byte that has a number divisible by every.
type flipper struct {
	http.ResponseWriter
	sent  *atomic.Int64
	every int64
}

func (f flipper) Write(p []byte) (int, error) {
	end := f.sent.Add(int64(len(p)))
	begin := end - int64(len(p))
	if at := (begin/f.every + 1) * f.every; at < end {
		p = append([]byte(nil), p...)
		p[at-begin] ^= 4
	}
	return f.ResponseWriter.Write(p)
}

func TestDownloadsSpeakHTTP1Only(t *testing.T) {
	t.Parallel()
	data := archive(1000)
	var major atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		major.Store(int32(r.ProtoMajor)) //nolint:gosec // 1 or 2
		serve(data)(w, r)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	b := fetcher(t, &durable.FS{})
	b.Client = NewClient(s.Client().Transport.(*http.Transport).TLSClientConfig.Clone())
	defer b.Client.CloseIdleConnections()
	ref := refTo(data, 0)
	ref.URL = s.URL
	if err := b.fetch(t.Context(), ref); err != nil || major.Load() != 1 {
		t.Errorf("HTTP/%d, %v", major.Load(), err)
	}
}

func TestADownloadThatTheAgentsDeathInterruptedFetchesLessThanOnePartTwice(t *testing.T) {
	t.Parallel()
	data := archive(1 << 20)
	h, ranges := interrupted(data, nil)
	s := httptest.NewServer(h)
	defer s.Close()
	b := fetcher(t, &durable.FS{})
	ref := refTo(data, 128<<10)
	ref.URL = s.URL
	ctx, die := context.WithCancelCause(t.Context())
	dead := errors.New("dead")
	err := b.Fetch(ctx, ref, 0, nil, func(n int64) {
		if n >= 300<<10 {
			die(dead)
		}
	})
	if !errors.Is(err, dead) {
		t.Fatal(err)
	}
	if err := b.fetch(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	b.holds(t, ref, data)
	if got := (*ranges)[len(*ranges)-1]; !strings.HasPrefix(got, "bytes=262144-") {
		t.Errorf("requests %q", *ranges)
	}
}

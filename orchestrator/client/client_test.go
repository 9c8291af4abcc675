package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/pkg/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a server that misbehaves as h says and a client for it.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c, err := New(s.URL, "kx_secret")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// hangUp ends the connection without an answer.
func hangUp(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

func TestALostReplyIsAskedForAgainUnderTheSameKey(t *testing.T) {
	t.Parallel()
	var (
		mu     sync.Mutex
		keys   []string
		bodies []string
	)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		keys, bodies = append(keys, r.Header.Get("Idempotency-Key")), append(bodies, string(b))
		n := len(keys)
		mu.Unlock()
		if n < 3 {
			hangUp(w)
			return
		}
		answer(w, http.StatusCreated, fleet.Deployment{ID: "dep-1"})
	})
	d, err := c.Deploy(t.Context(), NewDeployment{Bundle: "b", BundleVersion: "1.0.0", Selector: new("a=b")})
	if err != nil || d.ID != "dep-1" {
		t.Fatalf("got %+v, %v", d, err)
	}
	if len(keys) != 3 || keys[0] == "" || keys[1] != keys[0] || keys[2] != keys[0] {
		t.Fatalf("keys %q", keys)
	}
	if bodies[2] != `{"bundle":"b","bundle_version":"1.0.0","selector":"a=b"}` || bodies[0] != bodies[2] {
		t.Fatalf("bodies %q", bodies)
	}
	if _, err := c.Deploy(t.Context(), NewDeployment{}); err != nil || keys[3] == keys[0] {
		t.Fatalf("another call must have another key: %q, %v", keys, err)
	}
}

func TestABusyServerIsAskedAgain(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusBadGateway} {
		var calls atomic.Int32
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				answer(w, status, map[string]any{"title": "busy", "code": "unavailable"})
				return
			}
			answer(w, http.StatusOK, fleet.Device{ID: "dev"})
		})
		if d, err := c.Device(t.Context(), "dev"); err != nil || d.ID != "dev" || calls.Load() != 2 {
			t.Errorf("%d: got %q, %v after %d calls", status, d.ID, err, calls.Load())
		}
	}
}

func TestWhatMayNotBeRepeatedIsNot(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		hangUp(w)
	})
	if err := c.DeleteDevice(t.Context(), "dev"); fleet.ErrorCode(err) != fleet.CodeUnavailable || !errors.Is(err, ErrUnreachable) {
		t.Errorf("delete: %v", err)
	}
	if _, err := c.SetConfig(t.Context(), "dev", fleet.ConfigPatch{}, 3); !errors.Is(err, ErrUnreachable) {
		t.Errorf("conditional put: %v", err)
	}
	// The transport itself repeats an idempotent request once where the
	// connection it reused turns out to be closed; these are fresh ones.
	if n := calls.Load(); n != 2 {
		t.Errorf("%d calls, want 2", n)
	}
}

func TestARefusalIsFinalAndCarriesTheServersWords(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	for _, tc := range []struct {
		status int
		body   string
		code   fleet.Code
		text   string
	}{
		{400, `{"title":"Bad Request","status":400,"detail":"selector \"x\" is wrong","code":"invalid"}`, "invalid", `selector "x" is wrong`},
		{409, `{"title":"Conflict","detail":"in use by dep-1","code":"key_reused"}`, "key_reused", "in use by dep-1"},
		{404, `{"title":"Not Found","detail":"no device dev"}`, "not_found", "no device dev"},
		{412, `{"title":"Precondition Failed"}`, "stale", "Precondition Failed"},
		{401, `<html>`, "unauthorized", "401 Unauthorized without the admin API's explanation"},
		{500, `{"title":"Internal Server Error","detail":"internal error","code":"internal"}`, "internal", "internal error"},
		{418, ``, "internal", "is this the address of Kernex?"},
	} {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.WriteHeader(tc.status)
			_, _ = io.WriteString(w, tc.body)
		})
		calls.Store(0)
		_, err := c.Approve(t.Context(), "dev")
		var e *fleet.Error
		if !errors.As(err, &e) || e.Code != tc.code || !strings.Contains(e.Message, tc.text) {
			t.Errorf("%d %s: got %v", tc.status, tc.body, err)
		}
		if calls.Load() != 1 {
			t.Errorf("%d: %d calls", tc.status, calls.Load())
		}
	}
}

func TestAnAnswerThatIsNoJSONNamesTheAddress(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "<html>hello") })
	_, err := c.Device(t.Context(), "dev")
	if err == nil || !strings.Contains(err.Error(), c.URL()) || !strings.Contains(err.Error(), "is this the address of Kernex?") {
		t.Fatal(err)
	}
}

func TestAServerThatIsNotThereIsNamed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := New("http://"+addr, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Device(t.Context(), "dev")
	if want := "cannot reach http://" + addr + ": connection refused"; fleet.ErrorMessage(err) != want || !errors.Is(err, ErrUnreachable) {
		t.Fatalf("got %q, want %q", fleet.ErrorMessage(err), want)
	}
}

func TestACancelledCallEndsAtOnceAndSaysSo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if _, err := c.Device(ctx, "dev"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestAListReadsEveryPage(t *testing.T) {
	t.Parallel()
	const total = 2500
	var queries []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		queries = append(queries, r.URL.RawQuery)
		var from, limit int
		_, _ = fmt.Sscan(r.FormValue("limit"), &limit)
		_, _ = fmt.Sscan(r.FormValue("cursor"), &from)
		p := fleet.List[fleet.Device]{Total: total}
		for i := from; i < min(from+limit, total); i++ {
			p.Items = append(p.Items, fleet.Device{ID: fmt.Sprint(i)})
		}
		if from+limit < total {
			p.NextCursor = fmt.Sprint(from + limit)
		}
		answer(w, http.StatusOK, p)
	})
	p, err := c.Devices(t.Context(), DeviceFilter{Selector: "a=b,c!=d"}, 0)
	if err != nil || len(p.Items) != total || p.Items[2499].ID != "2499" || p.NextCursor != "" || p.Total != total || len(queries) != 3 {
		t.Fatalf("%d items, next %q, queries %q, %v", len(p.Items), p.NextCursor, queries, err)
	}
	if p, err = c.Devices(t.Context(), DeviceFilter{}, 1200); err != nil || len(p.Items) != 1200 || p.NextCursor != "1200" {
		t.Fatalf("%d items, next %q, %v", len(p.Items), p.NextCursor, err)
	}
}

func TestIdsThatAServerWouldCleanAwayAreRefusedHere(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.EscapedPath() != "/api/v1/devices/..%2Fa%3Fb" {
			t.Errorf("the server was asked for %s", r.URL.EscapedPath())
		}
		answer(w, http.StatusOK, fleet.Device{})
	})
	for _, id := range []string{"", ".", ".."} {
		if err := c.DeleteDevice(t.Context(), id); fleet.ErrorCode(err) != fleet.CodeInvalid {
			t.Errorf("%q: %v", id, err)
		}
	}
	if _, err := c.Device(t.Context(), "../a?b"); err != nil {
		t.Error(err)
	}
}

func TestAnUploadStartsAgainFromItsFirstByte(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			_, _ = io.CopyN(io.Discard, r.Body, 300_000)
			hangUp(w)
			return
		}
		f, head, err := r.FormFile("file")
		if err != nil {
			t.Error(err)
			return
		}
		b, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(b, content) || head.Filename != "b.tar.gz" || r.ContentLength < int64(len(content)) {
			t.Errorf("%d bytes of %q, length %d, %v", len(b), head.Filename, r.ContentLength, err)
		}
		answer(w, http.StatusCreated, fleet.Bundle{ID: "bun-1"})
	})
	var last atomic.Int64
	b, err := c.UploadBundle(t.Context(), "b.tar.gz", bytes.NewReader(content), int64(len(content)), last.Store)
	if err != nil || b.ID != "bun-1" || last.Load() != int64(len(content)) {
		t.Fatalf("%+v, %v, %d bytes reported", b, err, last.Load())
	}
}

func TestARefusedUploadSendsNothing(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusUnauthorized, map[string]any{"title": "Unauthorized", "detail": "no such token", "code": "unauthorized"})
	})
	var sent atomic.Int64
	_, err := c.UploadBundle(t.Context(), "b.tar.gz", bytes.NewReader(make([]byte, 8<<20)), 8<<20, sent.Store)
	if fleet.ErrorCode(err) != fleet.CodeUnauthorized || sent.Load() != 0 {
		t.Fatalf("%v after %d bytes", err, sent.Load())
	}
}

func TestURLsAndTokensThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"", "localhost:8080", "ftp://x", "http://", "http://user:pw@x", "http://x?y=z", "http://x#y", "http://a b"} {
		if _, err := New(u, ""); fleet.ErrorCode(err) != fleet.CodeInvalid {
			t.Errorf("URL %q: %v", u, err)
		}
	}
	if _, err := New("http://x", "a\nb"); fleet.ErrorCode(err) != fleet.CodeInvalid {
		t.Errorf("token: %v", err)
	}
}

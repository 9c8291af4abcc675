package api_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	_ "github.com/lib/pq"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/orchestrator/api"
	"github.com/kernexhq/kernex/orchestrator/objectstore"
	"github.com/kernexhq/kernex/orchestrator/postgres"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/pkg/testkit/s3test"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var _ api.Store = (*postgres.DB)(nil)

// bundleObjects is what the wiring makes of the object store.
type bundleObjects struct{ *objectstore.Store }

func (bundleObjects) NewKey() string { return objectstore.NewKey() }

func (b bundleObjects) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	_, err := b.Store.Put(ctx, key, r, size)
	return err
}

// env is the API on a real database and, if asked for, a real object store.
type env struct {
	t     testing.TB
	db    *postgres.DB
	raw   *sql.DB // for what the store has no method for
	dsn   string
	api   *api.API
	url   string
	admin string
	logs  *syncBuffer
	s3    *s3test.Store
	store *objectstore.Store
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newEnv(t testing.TB, change ...func(*api.Config)) *env {
	t.Helper()
	e := &env{t: t, dsn: testkit.Postgres(t), logs: &syncBuffer{}}
	var err error
	if e.db, err = postgres.Open(t.Context(), e.dsn, 10); err != nil {
		t.Fatal(err)
	}
	if e.raw, err = sql.Open("postgres", e.dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(e.raw.Close(), e.db.Close()) })
	created, err := e.db.EnsureAdminToken(t.Context(), func(secret string) error { e.admin = secret; return nil })
	if err != nil || !created {
		t.Fatalf("first admin token: %v, %v", created, err)
	}
	cfg := api.Config{Store: e.db, Fleet: "test", Logger: zerolog.New(e.logs)}
	for _, f := range change {
		f(&cfg)
	}
	e.api = api.New(cfg)
	srv := httptest.NewServer(e.api)
	t.Cleanup(func() {
		e.api.Close()
		srv.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	e.url = srv.URL
	return e
}

// newEnvS3 is newEnv with the real object store.
func newEnvS3(t testing.TB, change ...func(*api.Config)) *env {
	t.Helper()
	s3 := s3test.Start(t)
	store, err := objectstore.New(objectstore.Config{Endpoint: s3.URL, Region: s3.Region, AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, Bucket: "bundles", AllowInsecure: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.EnsureBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	e := newEnv(t, append([]func(*api.Config){func(c *api.Config) { c.Objects = bundleObjects{store} }}, change...)...)
	e.s3, e.store = s3, store
	return e
}

// answer is what a call got.
type answer struct {
	t      testing.TB
	call   string
	status int
	header http.Header
	body   []byte
}

// header is one header line of a call.
type header struct{ name, value string }

// call sends body (a string as it is, anything else as JSON) with the admin
// token unless a header says otherwise; an empty value removes one.
func (e *env) call(method, path string, body any, headers ...header) answer {
	e.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case io.Reader:
		r = b
	default:
		j, err := json.Marshal(b)
		if err != nil {
			e.t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	if top, ok := strings.CutPrefix(path, "//"); ok { // outside of the API's base
		path = "/" + top
	} else {
		path = "/api/v1" + path
	}
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.url+path, r)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+e.admin)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		if h.value == "" {
			req.Header.Del(h.name)
		} else {
			req.Header.Set(h.name, h.value)
		}
	}
	resp, err := noRedirects.Do(req)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{t: e.t, call: method + " " + path, status: resp.StatusCode, header: resp.Header, body: b}
}

var noRedirects = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     http.DefaultTransport,
}

func bearer(token string) header { return header{"Authorization", "Bearer " + token} }

func as(token string) header { return bearer(token) }

// into checks the status and decodes the body.
func (a answer) into(status int, v any) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s: status %d, want %d: %s", a.call, a.status, status, a.body)
	}
	if v != nil {
		if err := json.Unmarshal(a.body, v); err != nil {
			a.t.Fatalf("%s: %v: %s", a.call, err, a.body)
		}
	}
	return a
}

// refused checks that the answer is a problem with this status and code and
// returns its detail.
func (a answer) refused(status int, code fleet.Code) string {
	a.t.Helper()
	var p api.Problem
	if a.status != status {
		a.t.Errorf("%s: status %d, want %d: %s", a.call, a.status, status, a.body)
	}
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		a.t.Errorf("%s: Content-Type %q: %s", a.call, got, a.body)
	}
	if err := json.Unmarshal(a.body, &p); err != nil {
		a.t.Errorf("%s: %v: %s", a.call, err, a.body)
	}
	if p.Code != code || p.Status != status || p.Detail == "" || p.Type == "" || p.Title == "" {
		a.t.Errorf("%s: problem %+v, want code %s", a.call, p, code)
	}
	for _, internal := range []string{" pq: ", `"pq: `, "SELECT", "sql:", ".go:", "goroutine"} {
		if strings.Contains(string(a.body), internal) {
			a.t.Errorf("%s: the answer shows internals: %s", a.call, a.body)
		}
	}
	return p.Detail
}

func newKey(t testing.TB) string {
	t.Helper()
	k, err := identity.Generate(identity.KindEd25519)
	if err != nil {
		t.Fatal(err)
	}
	return string(k.Public().PEM())
}

// device registers a new device with labels.
func (e *env) device(labels fleet.Labels) fleet.Device {
	e.t.Helper()
	var d fleet.Device
	e.call("POST", "/devices", fleet.Registration{PublicKey: newKey(e.t), Labels: labels}).into(http.StatusCreated, &d)
	return d
}

// token makes an API token and returns its secret.
func (e *env) token(role fleet.Role, selector string) string {
	e.t.Helper()
	var t struct{ Token string }
	e.call("POST", "/tokens", map[string]any{"name": "test " + string(role), "role": role, "selector": selector}).into(http.StatusCreated, &t)
	return t.Token
}

func query(kv ...string) string {
	q := url.Values{}
	for i := 0; i < len(kv); i += 2 {
		q.Set(kv[i], kv[i+1])
	}
	return "?" + q.Encode()
}

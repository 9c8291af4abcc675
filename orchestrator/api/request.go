package api

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// request is what the layers of one request know of it; the one at its end logs
// it.
type request struct {
	id     string
	remote string // address of the peer, or what a trusted proxy says
	caller caller
	route  string
	err    error // what went wrong inside; logged, never sent
}

type requestKey struct{}

// requestOf returns the request that ctx belongs to; outside of observe an empty
// one.
func requestOf(ctx context.Context) *request {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r
	}
	return &request{}
}

// caller is who makes the request and what they may see.
type caller struct {
	token fleet.APIToken
	scope fleet.Selector
	actor fleet.Actor
}

func callerOf(ctx context.Context) caller { return requestOf(ctx).caller }

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= 200 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach deadlines and Flush.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// observe gives each request its id, its security headers and its deadlines,
// and writes one log event and the metrics at its end.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		info := &request{id: strings.ToLower(rand.Text()[:16]), remote: a.remote(r)}
		rec := &recorder{ResponseWriter: w}
		h := rec.Header()
		h.Set("X-Request-Id", info.id)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Frame-Options", "DENY")
		rc := http.NewResponseController(rec)
		// A writer without deadlines (a test's) has nothing to protect.
		_ = rc.SetReadDeadline(start.Add(readLimit))
		_ = rc.SetWriteDeadline(start.Add(writeLimit))
		defer func() {
			if p := recover(); p != nil {
				a.cfg.Logger.Error().Interface("panic", p).Str("request_id", info.id).Bytes("stack", debug.Stack()).Msg("a request handler panicked")
				if rec.status == 0 {
					a.fail(rec, r, fleet.Errorf(fleet.CodeInternal, "panic"))
				}
			}
			a.finish(r, rec, info, time.Since(start))
		}()
		next.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), requestKey{}, info)))
	})
}

func (a *API) finish(r *http.Request, rec *recorder, info *request, took time.Duration) {
	if rec.status == 0 {
		rec.status = http.StatusOK
	}
	a.metrics.observe(r.Method, info.route, rec.status, took)
	e := a.cfg.Logger.Info()
	switch {
	case rec.status >= 500 && r.URL.Path != readyPath: // whose answer is no failure of the request
		e = a.cfg.Logger.Error()
	case info.route == "": // probes, metrics, the console's files
		e = a.cfg.Logger.Debug()
	}
	e.Str("request_id", info.id).Str("method", r.Method).Str("path", r.URL.Path).Int("status", rec.status).Int64("bytes", rec.bytes).
		Dur("took", took).Str("remote", info.remote)
	if info.caller.token.ID != "" {
		e.Str("token", info.caller.token.ID)
	}
	if info.err != nil {
		e.AnErr("error", info.err)
	}
	e.Msg("request")
}

// remote returns the address of whoever asks. X-Forwarded-For counts only as far
// as trusted proxies wrote it: from the right, the first address that is none
// of theirs.
func (a *API) remote(r *http.Request) string {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	addr := ap.Addr().Unmap()
	if !a.trusted(addr) {
		return addr.String()
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		addr = hop.Unmap()
		if !a.trusted(addr) {
			break
		}
	}
	return addr.String()
}

func (a *API) trusted(addr netip.Addr) bool {
	for _, p := range a.cfg.TrustedProxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// fail answers err as a problem; what it says inside goes to the request's log
// event.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	requestOf(r.Context()).err = err
	p := problemOf(err)
	w.Header().Set("Content-Type", p.ContentType(""))
	w.Header().Set("Cache-Control", "no-store")
	switch p.Status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client is gone
}

func (a *API) notFound(w http.ResponseWriter, r *http.Request) {
	a.fail(w, r, fleet.Errorf(fleet.CodeNotFound, "there is nothing at %.200q", r.URL.Path))
}

// limitAddress holds back an address that asks too often.
func (a *API) limitAddress(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if wait := a.addresses.take(requestOf(r.Context()).remote); wait > 0 {
			a.tooMany(w, r, wait, "this address")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *API) tooMany(w http.ResponseWriter, r *http.Request, wait time.Duration, who string) {
	w.Header().Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
	a.fail(w, r, fleet.Errorf(fleet.CodeRateLimited, "%s asks too often: wait %s", who, wait.Round(time.Second)))
}

// cleanPath refuses paths that mean another one.
func (a *API) cleanPath(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for part := range strings.SplitSeq(strings.TrimPrefix(r.URL.Path, "/"), "/") {
			if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, func(c rune) bool { return c < ' ' || c == 0x7f }) {
				a.fail(w, r, fleet.Errorf(fleet.CodeInvalid, "the path %.200q holds an empty element, '.', '..' or a control character", r.URL.Path))
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// unauthorizedCost is how many requests of an address's rate one with a wrong
// token spends, so that guessing is slow.
const unauthorizedCost = 20

// authenticate finds out who asks: a valid API token of a role that may use
// HTTP, within its rate.
func (a *API) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info := requestOf(r.Context())
		c, err := a.caller(r.Context(), r, info.remote)
		if err != nil {
			if fleet.ErrorCode(err) == fleet.CodeUnauthorized {
				a.addresses.charge(info.remote, unauthorizedCost)
			}
			a.fail(w, r, err)
			return
		}
		info.caller = c
		if wait := a.tokens.take(c.token.ID); wait > 0 {
			a.tooMany(w, r, wait, "this token")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *API) caller(ctx context.Context, r *http.Request, remote string) (caller, error) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return caller{}, fleet.Errorf(fleet.CodeUnauthorized, "send one header Authorization: Bearer kx_...")
	}
	scheme, secret, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return caller{}, fleet.Errorf(fleet.CodeUnauthorized, "send one header Authorization: Bearer kx_...")
	}
	t, err := a.cfg.Store.Token(ctx, strings.TrimSpace(secret))
	if err != nil {
		return caller{}, err
	}
	if !t.Role.Includes(fleet.RoleViewer) {
		return caller{}, fleet.Errorf(fleet.CodeForbidden, "a token of role %s is for MQTT and may not use this API", t.Role)
	}
	scope, err := fleet.ParseSelector(t.Selector)
	if err != nil {
		return caller{}, fmt.Errorf("parse scope of token %s: %w", t.ID, errors.New(fleet.ErrorMessage(err)))
	}
	return caller{token: t, scope: scope, actor: fleet.Actor{Name: t.Name + " (" + t.ID + ")", Remote: remote}}, nil
}

// allow reports why the caller may not do what need may do.
func allow(c caller, need fleet.Role) error {
	if c.token.Role.Includes(need) {
		return nil
	}
	return fleet.Errorf(fleet.CodeForbidden, "this needs a token of role %s, this one is %s", need, c.token.Role)
}

// methods are those that the API uses, for 405.
var methods = []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

// route names the route for logs and metrics and answers when there is none.
func (a *API) route(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := a.mux.Handler(r); pattern != "" {
			_, path, _ := strings.Cut(pattern, " ")
			requestOf(r.Context()).route = path
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
			next.ServeHTTP(w, r)
			return
		}
		var allowed []string
		for _, m := range methods {
			probe := &http.Request{Method: m, URL: r.URL, Host: r.Host}
			if _, pattern := a.mux.Handler(probe); pattern != "" {
				allowed = append(allowed, m)
			}
		}
		if len(allowed) == 0 {
			a.notFound(w, r)
			return
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		a.fail(w, r, fleet.Errorf(codeMethod, "%.200q takes %s", r.URL.Path, strings.Join(allowed, ", ")))
	})
}

// readBody reads the body of an ordinary call: JSON, not compressed, within the
// limit. An upload reads its own.
func (a *API) readBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
			a.fail(w, r, fleet.Errorf(fleet.CodeUnsupported, "Content-Encoding %.40q: send the body as it is", enc))
			return
		}
		if requestOf(r.Context()).route == base+uploadPath && r.Method == http.MethodPost {
			next.ServeHTTP(w, r)
			return
		}
		if r.ContentLength > a.cfg.MaxBody {
			w.Header().Set("Connection", "close")
			a.fail(w, r, fleet.Errorf(fleet.CodeTooLarge, "the body is %d bytes, at most %d are allowed", r.ContentLength, a.cfg.MaxBody))
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, a.cfg.MaxBody))
		if err != nil {
			a.fail(w, r, bodyError(err))
			return
		}
		if len(body) > 0 {
			kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
			if err != nil || kind != "application/json" {
				a.fail(w, r, fleet.Errorf(fleet.CodeUnsupported, "Content-Type is %.80q, send application/json", r.Header.Get("Content-Type")))
				return
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		ctx, err := withOnce(r, body)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// bodyError gives a code to what went wrong while reading from the client.
func bodyError(err error) error {
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return fleet.Errorf(fleet.CodeTooLarge, "the body is larger than %d bytes", big.Limit)
	}
	if p := problemOf(err); p.Code != fleet.CodeInternal {
		return err
	}
	return fleet.Wrap(fleet.CodeInvalid, err, "the body ended before its announced length")
}

// withOnce carries a POST's Idempotency-Key, bound to the caller and to what is
// asked for.
func withOnce(r *http.Request, body []byte) (context.Context, error) {
	ctx := r.Context()
	key := r.Header.Get("Idempotency-Key")
	if key == "" || r.Method != http.MethodPost {
		return ctx, nil
	}
	if len(key) > 255 || strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return ctx, fleet.Errorf(fleet.CodeInvalid, "Idempotency-Key: use 1-255 printable ASCII characters without spaces")
	}
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s\n%s\n%s\n", r.Method, r.URL.Path, r.URL.RawQuery)
	_, _ = h.Write(body)
	return fleet.WithOnce(ctx, fleet.Once{TokenID: callerOf(ctx).token.ID, Key: key, Request: [32]byte(h.Sum(nil))}), nil
}

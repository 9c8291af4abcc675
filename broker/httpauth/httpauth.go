// Package httpauth lets a broker ask orchestrators on other hosts about logins:
// each login once, with a short memory for equal ones, and every few seconds
// which credentials changed. Without an orchestrator nobody gets in; who is in
// stays.
package httpauth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/singleflight"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/pkg/fleet"
)

const (
	authPath   = "/internal/v1/broker/auth"
	grantsPath = "/internal/v1/broker/grants"
)

// Bounds. askTotal is below the 5 s that the broker gives one login.
const (
	askOne    = 3 * time.Second         // one orchestrator, one login
	askTotal  = 4500 * time.Millisecond // all of them
	maxAnswer = 64 << 10
	maxConns  = 64 // to one orchestrator: a reconnecting fleet queues here
)

// Config says whom to ask.
type Config struct {
	URLs       []string    // base URLs of the orchestrators' internal listeners
	Secret     string      // shared with them
	TLS        *tls.Config // for https; nil is the system's roots
	Registerer prometheus.Registerer
	Log        zerolog.Logger
}

// Authorizer is a broker.Authorizer. Watch keeps what it granted true.
type Authorizer struct {
	cfg     Config
	client  *http.Client
	flights singleflight.Group
	cache   *cache
	first   atomic.Int64 // index of the URL that answered last
	metrics *metrics
	trouble zerolog.Logger
	state   state
}

// New checks the configuration; it asks nothing.
func New(cfg Config) (*Authorizer, error) {
	if len(cfg.URLs) == 0 {
		return nil, fleet.Errorf(fleet.CodeInvalid, "no orchestrator to ask about logins")
	}
	if cfg.Secret == "" {
		return nil, fleet.Errorf(fleet.CodeInvalid, "the secret shared with the orchestrators is empty")
	}
	urls := make([]string, len(cfg.URLs))
	for i, s := range cfg.URLs {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			return nil, fleet.Errorf(fleet.CodeInvalid, "orchestrator %q: it must be http://HOST:PORT or https://HOST:PORT", s)
		}
		urls[i] = u.Scheme + "://" + u.Host
	}
	cfg.URLs = urls
	a := &Authorizer{
		cfg: cfg, cache: newCache(),
		client: &http.Client{
			Transport: &http.Transport{
				DialContext:     (&net.Dialer{Timeout: askOne}).DialContext,
				TLSClientConfig: cfg.TLS, MaxConnsPerHost: maxConns, MaxIdleConnsPerHost: maxConns, IdleConnTimeout: time.Minute,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the secret goes nowhere else
		},
		metrics: newMetrics(cfg.Registerer),
		trouble: cfg.Log.Sample(&zerolog.BurstSampler{Burst: 2, Period: 10 * time.Second}),
	}
	_ = a.state.fail(fleet.Errorf(fleet.CodeUnavailable, "no orchestrator was asked yet")) // before it there was nothing
	return a, nil
}

// Close lets go of idle connections.
func (a *Authorizer) Close() { a.client.CloseIdleConnections() }

// Authorize implements broker.Authorizer. Equal logins at the same time are one
// question; an answer is remembered for 5 s, a refusal for 1 s.
func (a *Authorizer) Authorize(ctx context.Context, l broker.Login) (broker.Grant, error) {
	key := loginKey(l)
	if g, err, ok := a.cache.get(key, time.Now()); ok {
		a.metrics.logins.WithLabelValues("cached").Inc()
		return g, err
	}
	// The question outlives the one who asked first: others may wait for it.
	answer := a.flights.DoChan(string(key[:]), func() (any, error) {
		ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTotal)
		defer cancel()
		asked := time.Now()
		g, err := a.ask(ask, l)
		a.cache.put(key, g, err, asked)
		return g, err
	})
	select {
	case <-ctx.Done():
		return broker.Grant{}, fleet.Wrap(fleet.CodeUnavailable, ctx.Err(), "no orchestrator answered in time")
	case r := <-answer:
		g, _ := r.Val.(broker.Grant)
		return g, r.Err
	}
}

type login struct {
	Username string `json:"username"`
	ClientID string `json:"client_id"`
	Password []byte `json:"password"`
	Remote   string `json:"remote"`
}

type access struct {
	Role       string    `json:"role"`
	ID         string    `json:"id"`
	Restricted bool      `json:"restricted"`
	Epoch      int64     `json:"epoch"`
	Expires    time.Time `json:"expires"`
}

// ask asks one orchestrator after the other until one can tell.
func (a *Authorizer) ask(ctx context.Context, l broker.Login) (broker.Grant, error) {
	body, err := json.Marshal(login{l.Username, l.ClientID, l.Password, l.Remote})
	if err != nil {
		return broker.Grant{}, fmt.Errorf("encode a login: %w", err)
	}
	var grant broker.Grant
	err = a.each(ctx, func(ctx context.Context, base string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+authPath, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		var ok access
		if err := a.do(req, maxAnswer, &ok); err != nil {
			return err
		}
		grant = broker.Grant{Role: broker.Role(ok.Role), ID: ok.ID, Restricted: ok.Restricted, Epoch: ok.Epoch, Expires: ok.Expires}
		return nil
	})
	switch fleet.ErrorCode(err) {
	case "":
		a.metrics.logins.WithLabelValues("granted").Inc()
	case fleet.CodeUnauthorized:
		a.metrics.logins.WithLabelValues("refused").Inc()
	default:
		a.metrics.logins.WithLabelValues("unavailable").Inc()
		a.trouble.Error().Err(err).Msg("no orchestrator can tell about logins; nobody gets in")
	}
	return grant, err
}

// each calls f with one orchestrator after the other, the one that answered last
// first, until one answers. A refusal is an answer.
func (a *Authorizer) each(ctx context.Context, f func(ctx context.Context, base string) error) error {
	n := len(a.cfg.URLs)
	first := int(a.first.Load())
	words := "no orchestrator answers"
	var errs []error
	for i := range n {
		at := (first + i) % n
		one, cancel := context.WithTimeout(ctx, askOne)
		err := f(one, a.cfg.URLs[at])
		cancel()
		if err == nil || fleet.ErrorCode(err) == fleet.CodeUnauthorized {
			if i > 0 {
				a.first.Store(int64(at))
			}
			return err
		}
		if fleet.ErrorCode(err) == fleet.CodeUnavailable {
			words = "no orchestrator can tell: " + fleet.ErrorMessage(err)
		}
		errs = append(errs, fmt.Errorf("%s: %w", a.cfg.URLs[at], err))
		if ctx.Err() != nil {
			break
		}
	}
	return fleet.Wrap(fleet.CodeUnavailable, errors.Join(errs...), words)
}

// do sends a request and decodes the answer. Only an orchestrator's own refusal
// is fleet.CodeUnauthorized: a proxy's 403, say, is no answer.
func (a *Authorizer) do(req *http.Request, limit int64, answer any) error {
	req.Header.Set("Authorization", "Bearer "+a.cfg.Secret)
	begin := time.Now()
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	a.metrics.took.Observe(time.Since(begin).Seconds())
	body := io.LimitReader(resp.Body, limit)
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(body).Decode(answer); err != nil {
			return fmt.Errorf("decode the answer: %w", err)
		}
		_, err := io.Copy(io.Discard, body) // or the connection cannot be used again
		return err
	}
	var no struct {
		Code    fleet.Code `json:"code"`
		Message string     `json:"message"`
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	switch err := json.Unmarshal(text, &no); {
	case resp.StatusCode == http.StatusForbidden && err == nil && no.Code == fleet.CodeUnauthorized:
		return fleet.Errorf(fleet.CodeUnauthorized, "%s", no.Message)
	case resp.StatusCode == http.StatusUnauthorized:
		return fleet.Errorf(fleet.CodeUnavailable, "the orchestrator does not accept the shared secret")
	case err == nil && no.Code == fleet.CodeUnavailable && no.Message != "":
		return fleet.Errorf(fleet.CodeUnavailable, "%s", no.Message)
	}
	return fmt.Errorf("the orchestrator answered %s %s", resp.Status, no.Message)
}

// loginKey is a digest of everything that decides about a login; where it comes
// from does not. A length before each part keeps them apart.
func loginKey(l broker.Login) [sha256.Size]byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(l.Username), []byte(l.ClientID), l.Password} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

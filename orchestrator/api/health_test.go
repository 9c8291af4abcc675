package api_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/orchestrator/api"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// lines collects what is logged at warning and above.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(p))
	return len(p), nil
}

func TestReadinessAsksEveryCheck(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	var log lines
	e := newEnv(t, func(c *api.Config) {
		c.Logger = zerolog.New(&log).Level(zerolog.InfoLevel)
		c.Ready = []api.Check{
			{Name: "broker", Run: func(context.Context) error {
				if broken.Load() {
					return fleet.Wrap(fleet.CodeUnavailable, errors.New("dial tcp"), "no connection to the broker")
				}
				return nil
			}},
			{Name: "postgres", Run: func(ctx context.Context) error { return ctx.Err() }},
			{Name: "store", Run: func(context.Context) error {
				if broken.Load() {
					return errors.New("secret host refused")
				}
				return nil
			}},
		}
		c.Warnings = func() []string { return []string{"no release key yet: trust mode is open"} }
	})
	get := func(path string) answer { return e.call("GET", "/"+path, nil, header{"Authorization", ""}) }
	get("/livez").into(http.StatusOK, nil)
	var r struct {
		Status   string
		Checks   map[string]string
		Reasons  map[string]string
		Warnings []string
	}
	get("/readyz").into(http.StatusOK, &r)
	if r.Status != "ready" || r.Checks["postgres"] != "ok" || r.Checks["store"] != "ok" || len(r.Warnings) != 1 {
		t.Errorf("ready: %+v", r)
	}
	broken.Store(true)
	get("/readyz").into(http.StatusServiceUnavailable, nil)
	a := get("/readyz").into(http.StatusServiceUnavailable, &r)
	if r.Status != "not_ready" || r.Checks["store"] != "failed" || strings.Contains(string(a.body), "secret") {
		t.Errorf("not ready: %s", a.body)
	}
	if len(r.Reasons) != 2 || r.Reasons["broker"] != "no connection to the broker" || r.Reasons["store"] != "internal error" {
		t.Errorf("reasons: %q", r.Reasons)
	}
	broken.Store(false)
	get("/readyz").into(http.StatusOK, nil)
	get("/readyz").into(http.StatusOK, nil)
	// One line where it begins and one where it ends, for each check.
	if len(log.all) != 4 || !strings.Contains(strings.Join(log.all[:2], ""), "secret host refused") || !strings.Contains(log.all[3], "ready again") {
		t.Errorf("log: %q", log.all)
	}
	get("/livez").into(http.StatusOK, nil)
}

func TestACheckThatHangsIsAnsweredForAndNotAskedTwice(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	end := make(chan struct{})
	defer close(end)
	e := newEnv(t, func(c *api.Config) {
		c.Ready = []api.Check{{Name: "postgres", Run: func(context.Context) error { // as a driver that waits for its socket
			asked.Add(1)
			<-end
			return nil
		}}, {Name: "store", Run: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}}
	})
	for range 2 {
		a := e.call("GET", "//readyz", nil, header{"Authorization", ""}).into(http.StatusServiceUnavailable, nil)
		if strings.Count(string(a.body), "no answer within 5s") != 2 {
			t.Errorf("not ready: %s", a.body)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestMetricsCountRequestsByRoute(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.call("GET", "/devices/nobody", nil)
	a := e.call("GET", "//metrics", nil, header{"Authorization", ""})
	if !strings.Contains(string(e.call("GET", "//metrics", nil).body), `kernex_api_requests_total{method="GET",route="/api/v1/devices/{id}",status="404"} 1`) {
		t.Errorf("metrics: %s", a.body)
	}
}

func TestTheAPIIsReadable(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	docs := e.call("GET", "//docs", nil, header{"Authorization", ""}).into(http.StatusOK, nil)
	for _, want := range []string{"/bundles/{id}/verify", "Last-Event-ID", "operator", "<title>Kernex admin API</title>"} {
		if !strings.Contains(string(docs.body), want) {
			t.Errorf("/docs does not show %q", want)
		}
	}
	if strings.Contains(string(docs.body), "<script") || strings.Contains(string(docs.body), "https://") {
		t.Error("/docs needs a script or the internet")
	}
	var spec struct {
		OpenAPI string
		Paths   map[string]any
	}
	e.call("GET", "//openapi.json", nil, header{"Authorization", ""}).into(http.StatusOK, &spec)
	if spec.OpenAPI != "3.1.0" || spec.Paths["/events"] == nil || spec.Paths["/bundles"] == nil || len(spec.Paths) < 20 {
		t.Errorf("openapi %s with %d paths", spec.OpenAPI, len(spec.Paths))
	}
	e.call("GET", "//", nil).refused(http.StatusNotFound, "not_found")
}

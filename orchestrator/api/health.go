package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/singleflight"

	"github.com/kernexhq/kernex/pkg/fleet"
)

const readyPath = "/readyz"

// readyLimit is how long all checks of /readyz may take.
const readyLimit = 5 * time.Second

var noAnswer = fmt.Sprintf("no answer within %v", readyLimit)

// livez says that the process serves requests.
func (a *API) livez(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte("ok\n")) // the prober is gone
}

type readiness struct {
	Status   string            `json:"status"`  // ready or not_ready
	Checks   map[string]string `json:"checks"`  // ok or failed
	Reasons  map[string]string `json:"reasons"` // of those that failed, without internals: these are in the log
	Warnings []string          `json:"warnings"`
}

// readyz answers 200 when everything that this process needs works, else 503.
func (a *API) readyz(w http.ResponseWriter, r *http.Request) {
	answer := readiness{Status: "ready", Checks: map[string]string{}, Reasons: map[string]string{}, Warnings: []string{}}
	ctx, cancel := context.WithTimeout(r.Context(), readyLimit)
	defer cancel()
	verdicts := make([]<-chan singleflight.Result, len(a.cfg.Ready))
	for i, c := range a.cfg.Ready {
		verdicts[i] = a.health.ask(ctx, c)
	}
	for i, c := range a.cfg.Ready {
		err := verdict(ctx, verdicts[i])
		if r.Context().Err() != nil {
			return // nobody waits for the answer
		}
		a.health.note(a.cfg.Logger, c.Name, err)
		answer.Checks[c.Name] = "ok"
		if err != nil {
			answer.Checks[c.Name], answer.Reasons[c.Name], answer.Status = "failed", fleet.ErrorMessage(err), "not_ready"
		}
	}
	if a.cfg.Warnings != nil {
		answer.Warnings = append(answer.Warnings, a.cfg.Warnings()...)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if answer.Status != "ready" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(answer) // the prober is gone
}

// verdict waits for a check, which may hang longer than a prober waits.
func verdict(ctx context.Context, c <-chan singleflight.Result) error {
	select {
	case r := <-c:
		return r.Err
	default:
	}
	select {
	case r := <-c:
		return r.Err
	case <-ctx.Done():
		return fleet.Errorf(fleet.CodeUnavailable, "%s", noAnswer)
	}
}

// health remembers what failed, so that the log tells of changes and not of
// each probe.
type health struct {
	asking singleflight.Group // a check that hangs is waited for, not asked again

	mu     sync.Mutex
	failed map[string]time.Time // since when
}

// ask begins a check, or joins one that was begun by another probe.
func (h *health) ask(ctx context.Context, c Check) <-chan singleflight.Result {
	return h.asking.DoChan(c.Name, func() (any, error) {
		op, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyLimit)
		defer cancel()
		err := c.Run(op)
		if err != nil && op.Err() != nil && fleet.ErrorCode(err) == fleet.CodeInternal {
			err = fleet.Wrap(fleet.CodeUnavailable, err, noAnswer)
		}
		return nil, err
	})
}

func (h *health) note(log zerolog.Logger, check string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	since, failing := h.failed[check]
	switch {
	case err != nil && !failing:
		if h.failed == nil {
			h.failed = map[string]time.Time{}
		}
		h.failed[check] = time.Now()
		log.Error().Err(err).Str("check", check).Msg("not ready")
	case err == nil && failing:
		delete(h.failed, check)
		log.Info().Str("check", check).Str("after", time.Since(since).Round(time.Millisecond).String()).Msg("ready again")
	}
}

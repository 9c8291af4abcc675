package httpauth

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// How often changed credentials are asked for: a lost kick costs less than 5 s.
// Each look goes back further than the last success, for transactions that were
// open then, and now and then to the beginning, for devices that were deleted.
const (
	watchEvery  = 3 * time.Second
	watchMargin = time.Minute
	wholeEvery  = 10 * time.Minute
	maxGrants   = 64 << 20 // bytes: a million devices
)

// Sweeper ends connections whose grant is not valid any more; broker.Broker is
// one.
type Sweeper interface {
	Sweep(valid func(broker.Grant) bool) int
}

// state is what Ready tells.
type state struct {
	mu  sync.Mutex
	err error
}

func (s *state) fail(err error) (before error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, s.err = s.err, err
	return before
}

// Ready returns nil when an orchestrator answered the last look at changed
// credentials.
func (a *Authorizer) Ready(context.Context) error {
	a.state.mu.Lock()
	defer a.state.mu.Unlock()
	return a.state.err
}

type grants struct {
	Now     time.Time        `json:"now"`
	Whole   bool             `json:"whole"`
	Devices map[string]int64 `json:"devices"`
	Tokens  []string         `json:"tokens"`
}

// Forget drops what is remembered of a device or an API token: its credential
// changed.
func (a *Authorizer) Forget(id string) {
	a.cache.forget(func(g broker.Grant) bool { return g.ID != id })
}

// Watch asks for changed credentials until ctx ends and has s end the
// connections that they no longer allow.
func (a *Authorizer) Watch(ctx context.Context, s Sweeper) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var since, whole time.Time
	for {
		if time.Since(whole) > wholeEvery {
			since = time.Time{}
		}
		g, err := a.changed(ctx, since)
		switch before := a.state.fail(err); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			a.metrics.looks.WithLabelValues("failed").Inc()
			a.trouble.Error().Err(err).Msg("no orchestrator tells which credentials changed; devices that are connected stay")
		default:
			if before != nil {
				a.cfg.Log.Info().Msg("an orchestrator answers")
			}
			a.metrics.looks.WithLabelValues("ok").Inc()
			if g.Whole {
				whole = time.Now()
			}
			since = g.Now.Add(-watchMargin)
			a.apply(g, s)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (a *Authorizer) apply(g grants, s Sweeper) {
	void := make(map[string]bool, len(g.Tokens))
	for _, id := range g.Tokens {
		void[id] = true
	}
	holds := func(have broker.Grant) bool {
		if have.Role != broker.RoleDevice {
			return !void[have.ID]
		}
		now, known := g.Devices[have.ID]
		return known && now == have.Epoch || !known && !g.Whole
	}
	a.cache.forget(holds)
	if n := s.Sweep(holds); n > 0 {
		a.metrics.swept.Add(float64(n))
		a.cfg.Log.Info().Int("connections", n).Msg("ended connections whose credential changed")
	}
}

func (a *Authorizer) changed(ctx context.Context, since time.Time) (grants, error) {
	query := ""
	if !since.IsZero() {
		query = "?" + url.Values{"since": {since.UTC().Format(time.RFC3339Nano)}}.Encode()
	}
	var g grants
	err := a.each(ctx, func(ctx context.Context, base string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+grantsPath+query, nil)
		if err != nil {
			return err
		}
		g = grants{}
		return a.do(req, maxGrants, &g)
	})
	if err == nil && g.Now.IsZero() {
		err = fleet.Errorf(fleet.CodeUnavailable, "an orchestrator's answer has no time")
	}
	return g, err
}

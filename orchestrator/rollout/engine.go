package rollout

import (
	"context"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Store is where deployments are.
type Store interface {
	// Tick is the engine's sign of life and returns the time since the last one.
	Tick(ctx context.Context, start bool) (gap time.Duration, err error)
	// Step applies plan to one deployment that needs it and is not in skip. It
	// returns its id, "" if there is none, and whether anything changed.
	Step(ctx context.Context, grace time.Duration, all bool, skip []string, plan func(fleet.RolloutState) []fleet.Decision) (id string, changed bool, err error)
}

// Config says how to build an Engine. Zero durations mean the default.
type Config struct {
	Store Store
	Wake  <-chan struct{} // a deployment may need a step
	Log   zerolog.Logger

	// Grace is how long after a start or an outage nothing expires: one
	// heartbeat interval, in which devices report; 60 s. Negative: none.
	Grace time.Duration
	// Every is how often deadlines are looked at; 5 s. It must stay well below
	// 30 s, from which on silence counts as an outage.
	Every time.Duration
	// All is how often every open deployment is looked at, marked or not: the
	// bound on what a lost mark costs; 60 s.
	All time.Duration
}

// Engine is the loop that moves deployments. Several may run, in as many
// replicas: each deployment is locked by whoever steps it.
type Engine struct {
	cfg    Config
	ticked time.Time
}

// New makes an Engine; Run makes it work.
func New(cfg Config) *Engine {
	switch {
	case cfg.Grace == 0:
		cfg.Grace = time.Minute
	case cfg.Grace < 0:
		cfg.Grace = 0
	}
	if cfg.Every == 0 {
		cfg.Every = 5 * time.Second
	}
	if cfg.All == 0 {
		cfg.All = time.Minute
	}
	return &Engine{cfg: cfg}
}

// Between two rounds at least minGap passes, so that a thousand results are a
// few rounds and not a thousand; a tick is not needed more often than tickGap.
const (
	minGap  = 50 * time.Millisecond
	tickGap = 2 * time.Second
)

// Run steps deployments until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	tick, all := time.NewTicker(e.cfg.Every), time.NewTicker(e.cfg.All)
	defer tick.Stop()
	defer all.Stop()
	gap := time.NewTimer(0)
	defer gap.Stop()
	look := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-gap.C:
		}
		if err := e.runOnce(ctx, look); err != nil && ctx.Err() == nil {
			e.cfg.Log.Error().Err(err).Msg("step deployments")
		}
		gap.Reset(minGap)
		look = false
		select {
		case <-ctx.Done():
			return nil
		case <-e.cfg.Wake:
		case <-tick.C:
		case <-all.C:
			look = true
		}
	}
}

// runOnce steps deployments until none needs it; with all set it looks at every
// open one. A deployment that cannot be stepped does not hold up the others.
func (e *Engine) runOnce(ctx context.Context, all bool) error {
	var done []string
	var first error
	for ctx.Err() == nil {
		if err := e.tick(ctx); err != nil {
			return err
		}
		id, changed, err := e.cfg.Store.Step(ctx, e.cfg.Grace, all, done, Plan)
		if err != nil && first == nil {
			first = err
		}
		if id == "" {
			return first
		}
		if err != nil || !changed {
			done = append(done, id)
		}
	}
	return ctx.Err()
}

func (e *Engine) tick(ctx context.Context) error {
	if time.Since(e.ticked) < tickGap {
		return nil
	}
	gap, err := e.cfg.Store.Tick(ctx, e.ticked.IsZero())
	if err != nil {
		return fmt.Errorf("tick: %w", err)
	}
	if gap > 30*time.Second {
		e.cfg.Log.Warn().Dur("gap", gap).Msg("the engine was away; every open deadline was moved by that")
	}
	e.ticked = time.Now()
	return nil
}

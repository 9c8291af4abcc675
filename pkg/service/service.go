// Package service runs the parts of a program: started in order, each ready
// before the next one starts, stopped in reverse order, and all ended by the
// first one that fails.
package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// defaultStopTimeout is what a service gets to stop that names no own time. A
// whole program has 10 s, and most services need a few milliseconds.
const defaultStopTimeout = 5 * time.Second

// Service is one part. Each function may be nil.
type Service struct {
	Name string
	// Start returns when the part is ready for use. Its context bounds the
	// start only; what it leaves running ends with Stop.
	Start func(context.Context) error
	// Run is the part's loop, called in a goroutine after Start. It returns
	// when its context ends; an error before that ends the whole group, nil
	// does not.
	Run func(context.Context) error
	// Stop ends the part; it is called after Run's context was cancelled and
	// before Run's return is awaited. It is not called if Start failed.
	Stop func(context.Context) error
	// StopTimeout bounds Stop and the end of Run together; 0 means 5 s.
	StopTimeout time.Duration
}

// Group is an ordered set of services. It is used once.
type Group struct {
	log     zerolog.Logger
	parts   []Service
	running []*running // in the order of their start

	mu     sync.Mutex
	err    error // the first failure
	failed chan struct{}
}

type running struct {
	Service
	cancel context.CancelFunc
	done   chan struct{}
}

// NewGroup returns an empty group.
func NewGroup(log zerolog.Logger) *Group {
	return &Group{log: log, failed: make(chan struct{})}
}

// Add appends a service; it starts after, and stops before, all earlier ones.
func (g *Group) Add(s Service) { g.parts = append(g.parts, s) }

// Run starts all services, calls ready (if not nil), waits until ctx ends or a
// service fails, and stops all. It returns nil if ctx ended it and everything
// stopped in order, else the first failure with the service's name, joined by
// the errors of stopping.
func (g *Group) Run(ctx context.Context, ready func()) error {
	err := g.start(ctx)
	switch {
	case err == nil:
		if ready != nil {
			ready()
		}
		select {
		case <-ctx.Done():
		case <-g.failed:
		}
	case g.failure() != nil:
		err = nil // starting was cut short by a failure, which is returned below
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		err = nil // asked to end while starting
	}
	stopErr := g.stop(context.WithoutCancel(ctx))
	return errors.Join(err, g.failure(), stopErr)
}

// start starts the services until one fails, or one that runs already fails.
func (g *Group) start(ctx context.Context) error {
	startCtx, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-g.failed:
			cancel()
		case <-startCtx.Done():
		}
	}()
	defer func() { cancel(); <-watched }()
	for _, s := range g.parts {
		if err := startCtx.Err(); err != nil {
			return err
		}
		begin := time.Now()
		if s.Start != nil {
			if err := s.Start(startCtx); err != nil {
				return fmt.Errorf("start %s: %w", s.Name, err)
			}
		}
		runCtx, cancelRun := context.WithCancel(context.WithoutCancel(ctx))
		r := &running{Service: s, cancel: cancelRun, done: make(chan struct{})}
		g.running = append(g.running, r)
		go g.run(runCtx, r)
		g.log.Debug().Str("service", s.Name).Dur("took_ms", time.Since(begin)).Msg("started")
	}
	return nil
}

func (g *Group) run(ctx context.Context, r *running) {
	defer close(r.done)
	if r.Run == nil {
		return
	}
	err := r.Run(ctx)
	if err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = fmt.Errorf("%s: %w", r.Name, err)
		close(g.failed)
	}
}

func (g *Group) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// stop ends the services in reverse order, each within its own time; one that
// does not end in time is left behind, so that the others still end in order.
func (g *Group) stop(ctx context.Context) error {
	var errs []error
	for i := len(g.running) - 1; i >= 0; i-- {
		r := g.running[i]
		begin := time.Now()
		if err := stopOne(ctx, r); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", r.Name, err))
		}
		g.log.Debug().Str("service", r.Name).Dur("took_ms", time.Since(begin)).Msg("stopped")
	}
	return errors.Join(errs...)
}

func stopOne(ctx context.Context, r *running) error {
	timeout := r.StopTimeout
	if timeout == 0 {
		timeout = defaultStopTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r.cancel()
	result := make(chan error, 1)
	go func() {
		var err error
		if r.Stop != nil {
			err = r.Stop(ctx)
		}
		<-r.done
		result <- err
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("not within %v", timeout)
	}
}

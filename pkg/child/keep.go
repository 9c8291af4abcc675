package child

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Backoff between restarts: the first is almost immediate, because the usual
// cause is a single kill, and the cap keeps a lasting cause (a full disk) from
// filling the log while the child still comes back soon after the cause ends.
const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = 10 * time.Second
	// steady is how long a child must have lived for its end to count as a
	// new problem and the delay to start from firstDelay again.
	steady = 30 * time.Second
)

// Keeper keeps one child running: it starts it again, with backoff, whenever
// it ends by itself, for as long as it takes.
type Keeper struct {
	name     string
	start    func(context.Context) (*Process, error)
	steps    []Step
	log      zerolog.Logger
	restarts atomic.Int64

	mu   sync.Mutex
	proc *Process // the latest one; only run replaces it

	cancel context.CancelFunc
	done   chan struct{}
}

// Keep starts a child with start, which returns once the child is ready for
// use, and keeps it running until Stop. A failing first start is returned; later
// ones are logged and tried again. The context bounds the first start only.
func Keep(ctx context.Context, name string, log zerolog.Logger,
	start func(context.Context) (*Process, error), steps ...Step) (*Keeper, error) {
	p, err := start(ctx)
	if err != nil {
		return nil, err
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	k := &Keeper{name: name, start: start, steps: steps, log: log, proc: p,
		cancel: cancel, done: make(chan struct{})}
	go k.run(runCtx)
	return k, nil
}

func (k *Keeper) run(ctx context.Context) {
	defer close(k.done)
	delay := firstDelay
	begun := time.Now()
	for {
		p := k.current()
		select {
		case <-ctx.Done():
			p.Stop(k.steps...)
			return
		case <-p.Done():
		}
		if time.Since(begun) > steady {
			delay = firstDelay
		}
		k.log.Error().Str("child", k.name).Int("pid", p.PID()).AnErr("exit", p.Err()).
			Dur("restart_in_ms", delay).Msg("a child ended by itself")
		for {
			if !pause(ctx, delay) {
				return
			}
			delay = min(2*delay, maxDelay)
			next, err := k.start(ctx)
			if err == nil {
				k.mu.Lock()
				k.proc = next
				k.mu.Unlock()
				break
			}
			if ctx.Err() != nil {
				return
			}
			k.log.Error().Str("child", k.name).Err(err).Dur("retry_in_ms", delay).Msg("a child could not be restarted")
		}
		begun = time.Now()
		n := k.restarts.Add(1)
		k.log.Warn().Str("child", k.name).Int("pid", k.current().PID()).Int64("restarts", n).Msg("a child runs again")
	}
}

// pause waits for d; false means that ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (k *Keeper) current() *Process {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.proc
}

// PID returns the process id of the latest child, which may have just ended.
func (k *Keeper) PID() int { return k.current().PID() }

// Restarts counts how often the child had to be started again.
func (k *Keeper) Restarts() int { return int(k.restarts.Load()) }

// Done is closed when the child was stopped for good, after Stop.
func (k *Keeper) Done() <-chan struct{} { return k.done }

// Stop stops the child and waits for it. If ctx ends first the child is killed,
// with its process group, and ctx's error is returned. It may be called more
// than once.
func (k *Keeper) Stop(ctx context.Context) error {
	k.cancel()
	select {
	case <-k.done:
		return nil
	case <-ctx.Done():
		k.current().Stop()
		<-k.done
		return fmt.Errorf("stop %s: %w", k.name, ctx.Err())
	}
}

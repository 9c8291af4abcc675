package link

import (
	"context"
	"math/rand/v2"
	"time"
)

// Waits between connections. Full jitter keeps a fleet that lost its broker
// from coming back in waves; a refused credential is worth fewer attempts.
const (
	firstWait   = 500 * time.Millisecond
	maxWait     = 30 * time.Second
	maxWaitAuth = 5 * time.Minute
)

// backoff counts failures in a row.
type backoff struct{ n int }

// next returns a random wait, up to a bound that doubles with each failure.
func (b *backoff) next(limit time.Duration) time.Duration {
	bound := min(firstWait<<min(b.n, 20), limit)
	b.n++
	return time.Duration(rand.Int64N(int64(bound))) + bound/16 //nolint:gosec // jitter
}

func (b *backoff) reset() { b.n = 0 }

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

package agent

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// contact is when the broker last answered, and what was sent before.
type contact struct {
	mu      sync.Mutex
	sent    time.Time     // of the latest message that was answered
	changed chan struct{} // closed and replaced when sent changes; nil: nobody waits
}

// answered notes that the broker acknowledged what was sent at t.
func (c *contact) answered(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent = t
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// Reached implements update.Reporter.
func (c *contact) Reached(ctx context.Context, since time.Time) error {
	for {
		c.mu.Lock()
		if c.sent.After(since) {
			c.mu.Unlock()
			return nil
		}
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the broker: %w", ctx.Err())
		}
	}
}

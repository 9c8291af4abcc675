package httpauth

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// How long answers are remembered. Errors that are no refusal are not.
const (
	keepGrant   = 5 * time.Second
	keepRefusal = time.Second
	maxCached   = 20_000 // logins; about 6 MB
)

// cache remembers answers for a moment.
type cache struct {
	mu      sync.Mutex
	by      map[[sha256.Size]byte]cached
	cleared time.Time // answers asked for before it are not remembered
}

type cached struct {
	grant broker.Grant
	err   error
	until time.Time
}

func newCache() *cache { return &cache{by: map[[sha256.Size]byte]cached{}} }

func (c *cache) get(key [sha256.Size]byte, now time.Time) (broker.Grant, error, bool) { //nolint:revive // the error is what is remembered
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.by[key]
	if !ok || !now.Before(e.until) {
		return broker.Grant{}, nil, false
	}
	return e.grant, e.err, true
}

// put remembers the answer to a question asked at the given time. When there is
// no room it is not remembered.
func (c *cache) put(key [sha256.Size]byte, g broker.Grant, err error, asked time.Time) {
	keep := keepGrant
	switch fleet.ErrorCode(err) {
	case "":
	case fleet.CodeUnauthorized:
		keep = keepRefusal
	default:
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !asked.After(c.cleared) {
		return
	}
	if len(c.by) >= maxCached {
		now := time.Now()
		for k, e := range c.by {
			if !now.Before(e.until) {
				delete(c.by, k)
			}
		}
		if len(c.by) >= maxCached {
			return
		}
	}
	c.by[key] = cached{grant: g, err: err, until: asked.Add(keep)}
}

// forget drops every remembered grant that does not hold, and those whose
// questions are still open.
func (c *cache) forget(holds func(broker.Grant) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cleared = time.Now()
	for k, e := range c.by {
		if e.err == nil && !holds(e.grant) {
			delete(c.by, k)
		}
	}
}

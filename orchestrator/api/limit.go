package api

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rate is how many requests a second one caller may make, and how many at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

// limiter has a token bucket for each key. It keeps at most two generations of
// half the keys: whoever is active moves to the newer one, whoever is not is
// forgotten with the older one, so that no stranger can make it grow.
type limiter struct {
	rate Rate
	half int

	mu       sync.Mutex
	now, old map[string]*rate.Limiter
}

// maxCallers bounds how many addresses, or tokens, are told apart.
const maxCallers = 20_000

func newLimiter(r Rate) *limiter {
	return &limiter{rate: r, half: maxCallers / 2, now: map[string]*rate.Limiter{}, old: map[string]*rate.Limiter{}}
}

// take spends one request of key and returns how long to wait if that is too
// many; 0 is go on. Without a rate everything may.
func (l *limiter) take(key string) time.Duration {
	if l.rate.PerSecond <= 0 || l.bucket(key).Allow() {
		return 0
	}
	return max(time.Second, time.Duration(float64(time.Second)/l.rate.PerSecond))
}

// charge spends n more requests of key, also those of the time to come.
func (l *limiter) charge(key string, n int) {
	if l.rate.PerSecond > 0 {
		l.bucket(key).ReserveN(time.Now(), min(n, l.rate.Burst))
	}
}

func (l *limiter) bucket(key string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, ok := l.now[key]; ok {
		return b
	}
	b, ok := l.old[key]
	if !ok {
		b = rate.NewLimiter(rate.Limit(l.rate.PerSecond), l.rate.Burst)
	}
	if len(l.now) >= l.half {
		l.old, l.now = l.now, make(map[string]*rate.Limiter, l.half)
	}
	l.now[key] = b
	return b
}

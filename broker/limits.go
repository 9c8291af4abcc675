package broker

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// rateByAddr limits logins without a credential by address.
type rateByAddr struct {
	perSecond rate.Limit
	burst     int

	mu sync.Mutex
	by map[netip.Addr]*rate.Limiter
}

// maxRateAddrs bounds the addresses that are remembered.
const maxRateAddrs = 16384

func newRateByAddr(perSecond float64, burst int) rateByAddr {
	return rateByAddr{perSecond: rate.Limit(perSecond), burst: burst, by: make(map[netip.Addr]*rate.Limiter)}
}

func (r *rateByAddr) allow(addr netip.Addr, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.by[addr]
	if l == nil {
		if len(r.by) >= maxRateAddrs {
			r.forget(now)
		}
		l = rate.NewLimiter(r.perSecond, r.burst)
		r.by[addr] = l
	}
	return l.AllowN(now, 1)
}

// forget drops the addresses that have their whole burst again, and all of
// them if that is none: an attacker with so many addresses is not held by a
// limit per address anyway.
func (r *rateByAddr) forget(now time.Time) {
	for a, l := range r.by {
		if l.TokensAt(now) >= float64(r.burst) {
			delete(r.by, a)
		}
	}
	if len(r.by) >= maxRateAddrs {
		clear(r.by)
	}
}

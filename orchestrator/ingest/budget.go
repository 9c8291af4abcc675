package ingest

import "sync"

// budgetMax bounds the devices that a budget remembers; beyond it nobody is
// held back.
const budgetMax = 200_000

// budget limits what one device may cause in a span of time.
type budget struct {
	limit int

	mu   sync.Mutex
	used map[string]int
}

func newBudget(limit int) *budget { return &budget{limit: limit, used: map[string]int{}} }

// allow takes one of the device's share and reports whether there was one.
func (b *budget) allow(device string) bool { return b.spend(device, 1) }

// spend takes cost of the device's share and reports whether there was so much.
func (b *budget) spend(device string, cost int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, known := b.used[device]
	if !known && len(b.used) >= budgetMax {
		return true
	}
	b.used[device] = n + cost
	return n+cost <= b.limit
}

// roll starts a new span and returns the devices that wanted more than their
// share in the old one.
func (b *budget) roll() (over []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, n := range b.used {
		if n > b.limit {
			over = append(over, id)
		}
	}
	b.used = make(map[string]int)
	return over
}

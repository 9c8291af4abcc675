package api

import (
	"strconv"
	"testing"
)

func TestStrangersCannotMakeALimiterGrow(t *testing.T) {
	t.Parallel()
	l := newLimiter(Rate{PerSecond: 0.001, Burst: 1})
	l.take("busy")
	for i := range 3 * maxCallers {
		l.take(strconv.Itoa(i))
		if i%1000 == 0 && l.take("busy") == 0 {
			t.Fatalf("whoever is active was forgotten after %d others", i)
		}
	}
	if n := len(l.now) + len(l.old); n > maxCallers {
		t.Errorf("%d callers are kept, at most %d may be", n, maxCallers)
	}
}

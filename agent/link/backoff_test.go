package link

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestAWaitIsBoundedAndGrowsOnAverage(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var b backoff
		limit := rapid.SampledFrom([]time.Duration{maxWait, maxWaitAuth}).Draw(t, "limit")
		for n := range rapid.IntRange(1, 200).Draw(t, "failures") {
			bound := limit
			if n < 20 {
				bound = min(firstWait<<n, limit)
			}
			if d := b.next(limit); d <= 0 || d > bound+bound/16 {
				t.Fatalf("wait %d is %s, its bound %s", n, d, bound)
			}
		}
	})
}

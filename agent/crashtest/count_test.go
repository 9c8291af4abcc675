package crashtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// long visits every point; the short form is a sample.
var long = os.Getenv("KERNEX_CRASH_TEST") == "long"

// seed makes a run of random choices repeatable: KERNEX_CRASH_SEED.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano()) //nolint:gosec // any number will do
	if v := os.Getenv("KERNEX_CRASH_SEED"); v != "" {
		var err error
		if n, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("KERNEX_CRASH_SEED=%q: %v", v, err)
		}
	}
	t.Logf("KERNEX_CRASH_SEED=%d", n)
	return n
}

// counter counts points by part and says so at the test's end.
type counter struct {
	t        *testing.T
	expected bool   // violations are what the test is after
	found    func() // called at the first
	seed     uint64
	begun    time.Time

	mu         sync.Mutex
	points     map[string]int
	violations int
}

func newCounter(t *testing.T) *counter {
	t.Helper()
	return &counter{t: t, seed: seed(t), begun: time.Now(), points: map[string]int{}}
}

func (c *counter) add(part string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.points[part] += n
}

func (c *counter) violation(part, where string, err error, output *lines) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.violations++
	if c.expected {
		c.t.Logf("found: %s: %s: %v", part, where, err)
		if c.found != nil {
			c.found()
		}
		return
	}
	text := strings.Split(output.String(), "\n")
	c.t.Errorf("%s: %s:\n%v\nthe agent:\n%s", part, where, err, strings.Join(text[max(0, len(text)-60):], "\n"))
}

// workers runs f for every scenario, several devices at a time: most of a
// device's time is waiting for processes.
func (c *counter) workers(t *testing.T, f func(context.Context, *device, scenario, *rand.Rand)) {
	t.Helper()
	s := newServer(t)
	b := s.bundles(t)
	var all sync.WaitGroup
	for i, sc := range b.scenarios() {
		d := newDevice(t, s, b, fmt.Sprintf("worker-%d", i))
		all.Go(func() { f(t.Context(), d, sc, rand.New(rand.NewPCG(c.seed, uint64(i)))) }) //nolint:gosec // repeatable
	}
	all.Wait()
	for part, n := range c.points {
		fmt.Printf("crash test, %s: %d points, %d violations, %.0f s\n", part, n, c.violations, time.Since(c.begun).Seconds())
	}
}

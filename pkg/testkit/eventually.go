package testkit

import (
	"testing"
	"time"
)

// Eventually waits until the condition holds, checking after 10 ms and then
// ever less often, down to every 100 ms, and fails the test after the timeout. A condition that returns an error holds when the
// error is nil; the last error is part of the failure.
func Eventually[C func() bool | func() error](t testing.TB, timeout time.Duration, condition C) {
	t.Helper()
	check := func() (ok bool, why any) {
		switch c := any(condition).(type) {
		case func() error:
			err := c()
			return err == nil, err
		case func() bool:
			return c(), "the condition does not hold"
		}
		return false, "unreachable"
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	pause := 10 * time.Millisecond
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		ok, why := check()
		if ok {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("not within %v: %v", timeout, why)
		case <-t.Context().Done():
			t.Fatalf("the test ended: %v", why)
		case <-tick.C:
			pause = min(pause*5/4, 100*time.Millisecond)
			tick.Reset(pause)
		}
	}
}

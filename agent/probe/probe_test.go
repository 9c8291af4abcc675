package probe

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

func never() string { return "" }

func TestMetricsOfThisHostAreWithinTheirBounds(t *testing.T) {
	t.Parallel()
	h := NewHost(t.TempDir())
	for range 2 {
		s, err := h.Read()
		if err != nil {
			t.Fatal(err)
		}
		if s.UptimeS <= 0 || s.CPUPct < 0 || s.CPUPct > 100 || s.MemoryMB <= 0 || s.MemPct <= 0 || s.MemPct > 100 || s.DiskPct <= 0 || s.DiskPct > 100 {
			t.Errorf("%+v", s)
		}
	}
	if err := (fleet.Registration{HardwareMetadata: Hardware()}).Validate(); err != nil {
		t.Error(err)
	}
	if BootID() == "" || OS() == "" {
		t.Error("no boot id or OS")
	}
}

func TestStatusIsTheWorstMetric(t *testing.T) {
	t.Parallel()
	l := Limits{CPU: Limit{80, 95}, Memory: Limit{0, 0}, Disk: Limit{90, 98}}
	for want, s := range map[string]Sample{
		Healthy:  {CPUPct: 79, MemPct: 100, DiskPct: 89},
		Degraded: {CPUPct: 80, DiskPct: 97},
		Failing:  {CPUPct: 80, DiskPct: 98},
	} {
		if got := l.Status(s); got != want {
			t.Errorf("%+v is %s, want %s", s, got, want)
		}
	}
}

func TestHealthNeedsItsSuccessesInARow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answers := []string{"", "bad", "", ""}
		n := 0
		c := Check{Health: bundle.Health{Script: "h", IntervalS: 2, TimeoutS: 5, Successes: 2, WindowS: 20}, Gone: never,
			Script: func(context.Context, time.Duration) (string, string) { n++; return answers[n-1], "" }}
		begun := time.Now()
		if v := c.Run(t.Context()); v.Err != nil {
			t.Fatal(v.Err)
		}
		if n != 4 || time.Since(begun) != 6*time.Second {
			t.Fatalf("%d probes in %s", n, time.Since(begun))
		}
	})
}

func TestAFailingHealthCheckSpeaksInItsOwnWords(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := Check{Health: bundle.Health{Script: "h", IntervalS: 3, TimeoutS: 5, Successes: 1, WindowS: 10}, Gone: never,
			Script: func(context.Context, time.Duration) (string, string) {
				return "health.sh: exit status 1", "model missing"
			}}
		begun := time.Now()
		v := c.Run(t.Context())
		if fleet.ErrorCode(v.Err) != fleet.CodeHealth || !strings.Contains(v.Err.Error(), "within 10s (5 tries); last answer: health.sh: exit status 1") || v.Output != "model missing" {
			t.Fatalf("%+v", v)
		}
		if time.Since(begun) != 10*time.Second {
			t.Errorf("took %s", time.Since(begun))
		}
		c.Gone = func() string { return "./server: exit status 9" }
		begun = time.Now()
		if v := c.Run(t.Context()); !strings.Contains(v.Err.Error(), "the program ended (./server: exit status 9)") || time.Since(begun) != 0 {
			t.Errorf("%v after %s", v.Err, time.Since(begun))
		}
	})
}

func TestHealthOverHTTPAndTCP(t *testing.T) {
	t.Parallel()
	var ok atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !ok.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprint(w, "warming up")
		}
	}))
	defer s.Close()
	address := strings.TrimPrefix(s.URL, "http://")
	web := Check{Health: bundle.Health{HTTP: s.URL, TimeoutS: 5, Successes: 1}, Gone: never}
	if v := web.Run(t.Context()); v.Err == nil || !strings.Contains(v.Err.Error(), "503 Service Unavailable warming up") {
		t.Errorf("unhealthy: %v", v.Err)
	}
	ok.Store(true)
	if v := web.Run(t.Context()); v.Err != nil {
		t.Error(v.Err)
	}
	tcp := Check{Health: bundle.Health{TCP: address, TimeoutS: 5, Successes: 1}, Gone: never}
	if v := tcp.Run(t.Context()); v.Err != nil {
		t.Error(v.Err)
	}
	s.Close()
	if v := tcp.Run(t.Context()); v.Err == nil || !strings.Contains(v.Err.Error(), "refused") {
		t.Errorf("nobody listens: %v", v.Err)
	}
}

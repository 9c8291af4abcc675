package probe

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// answerBytes is how much of a failing answer stands in the error.
const answerBytes = 512

// Check asks a release whether it works.
type Check struct {
	Health bundle.Health
	// Script runs the health script once and says in words why it failed; "" is
	// success. output is what it printed.
	Script func(ctx context.Context, limit time.Duration) (reason, output string)
	// Gone says in words why there is no sense in asking on, because the
	// program has ended for good; "" as long as there is.
	Gone func() string
}

// Verdict is the outcome of a health check.
type Verdict struct {
	Err    error // nil: healthy; else fleet.CodeHealth in the check's own words, or ctx's error
	Output string
}

// client opens a connection each time: a health check must not be answered by
// a connection of the release before.
var client = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Run probes until Successes probes in a row succeeded or the window is over.
func (c Check) Run(ctx context.Context) Verdict {
	h := c.Health
	window := time.Duration(h.WindowS) * time.Second
	end := time.Now().Add(window)
	row, tries := 0, 0
	var words, output string
	for {
		tries++
		limit := min(time.Duration(h.TimeoutS)*time.Second, max(time.Until(end), time.Second))
		words, output = c.once(ctx, limit)
		if ctx.Err() != nil {
			return Verdict{Err: ctx.Err()}
		}
		if words == "" {
			row++
			if row >= h.Successes {
				return Verdict{Output: output}
			}
			words = "succeeded, but not often enough"
		} else {
			row = 0
			if gone := c.Gone(); gone != "" {
				return Verdict{fleet.Errorf(fleet.CodeHealth, "health check: the program ended (%s); last answer: %s", gone, words), output}
			}
		}
		if left := time.Until(end); left <= 0 || !pause(ctx, min(time.Duration(h.IntervalS)*time.Second, left)) {
			if ctx.Err() != nil {
				return Verdict{Err: ctx.Err()}
			}
			return Verdict{fleet.Errorf(fleet.CodeHealth, "health check: not %d successes in a row within %s (%d tries); last answer: %s", h.Successes, window, tries, words), output}
		}
	}
}

func (c Check) once(ctx context.Context, limit time.Duration) (words, output string) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	switch {
	case c.Health.Script != "":
		return c.Script(ctx, limit)
	case c.Health.HTTP != "":
		return get(ctx, c.Health.HTTP), ""
	default:
		return dial(ctx, c.Health.TCP), ""
	}
}

func get(ctx context.Context, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	res, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		return ""
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, answerBytes)) // the status alone will do
	return strings.TrimSpace(fmt.Sprintf("%s answered %s %s", url, res.Status, body))
}

func dial(ctx context.Context, address string) string {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err.Error()
	}
	_ = conn.Close() // it answered
	return ""
}

// pause waits for d; false means that ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

package client

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Following a device's log.
const (
	logPoll  = 500 * time.Millisecond
	logShare = 5 * time.Minute  // a device is asked to send for so long,
	logRenew = 4 * time.Minute  // and again after this
	logLate  = 15 * time.Second // lines may be stored out of order within this
	logPage  = 1000
)

func logQuery(f fleet.LogFilter) url.Values {
	q := url.Values{}
	set(q, "level", f.Level)
	if !f.From.IsZero() {
		q.Set("from", f.From.UTC().Format(time.RFC3339Nano))
	}
	if !f.To.IsZero() {
		q.Set("to", f.To.UTC().Format(time.RFC3339Nano))
	}
	set(q, "after", f.After)
	return q
}

// Logs lists at most limit stored lines of a device, newest first; 0 is all.
// f.After is FollowLogs's.
func (c *Client) Logs(ctx context.Context, id string, f fleet.LogFilter, limit int) (fleet.List[fleet.LogLine], error) {
	f.After = ""
	return list[fleet.LogLine](ctx, c, path("devices", id, "logs"), logQuery(f), limit)
}

// AskLogs makes a device send lines; CodeConflict when it is not online.
func (c *Client) AskLogs(ctx context.Context, id string, r fleet.LogRequest) (fleet.CommandRef, error) {
	var ref fleet.CommandRef
	return ref, c.post(ctx, path("devices", id, "logs"), r, &ref)
}

// Restart starts the bundle's program of a device anew; CodeConflict when the
// device is not online.
func (c *Client) Restart(ctx context.Context, id string) (fleet.CommandRef, error) {
	var ref fleet.CommandRef
	return ref, c.post(ctx, path("devices", id, "restart"), nil, &ref)
}

// LogFollow says how a device's log is followed.
type LogFollow struct {
	After  string           // id of the last line already seen; empty: from the first that is stored
	Level  string           // this level and worse
	Lines  int              // what the device sends first of what it has
	Paused func(err error)  // told when the device cannot be asked or the API not be reached; may be nil
	Until  <-chan time.Time // ends it without an error; nil: ctx does
}

// FollowLogs has a device send its log and calls fn with each line, in order of
// arrival, until ctx ends or fn or the API says no. A device that is away is
// asked again when it is back.
func (c *Client) FollowLogs(ctx context.Context, id string, f LogFollow, fn func(fleet.LogLine) error) error {
	s := logStream{after: f.After, seen: map[string]bool{}}
	if s.after == "" {
		s.after = "0"
	}
	ask := fleet.LogRequest{Lines: f.Lines, FollowS: int(logShare / time.Second)}
	var asked, told time.Time
	tick := time.NewTicker(logPoll)
	defer tick.Stop()
	pause := func(err error) {
		if f.Paused != nil && time.Since(told) > logLate {
			told = time.Now()
			f.Paused(err)
		}
	}
	for {
		if time.Since(asked) > logRenew {
			switch _, err := c.AskLogs(ctx, id, ask); {
			case err == nil:
				asked, ask.Lines = time.Now(), 0
			case fleet.ErrorCode(err) != fleet.CodeConflict && !passing(err):
				return err
			case ctx.Err() == nil:
				pause(err)
				asked = time.Now().Add(4*logPoll - logRenew)
			}
		}
		err := s.poll(ctx, c, id, f.Level, fn)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("follow the log of %s: %w", id, ctx.Err())
		case err != nil && !passing(err):
			return err
		case err != nil:
			pause(err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("follow the log of %s: %w", id, ctx.Err())
		case <-f.Until:
			return nil
		case <-tick.C:
		}
	}
}

// passing reports whether an error may be gone at the next try.
func passing(err error) bool {
	switch fleet.ErrorCode(err) {
	case fleet.CodeUnavailable, fleet.CodeRateLimited:
		return true
	}
	return errors.Is(err, ErrUnreachable)
}

// logStream remembers what was seen. Ids are given before lines are committed,
// so a line may turn up behind others that have a higher one: it looks back
// over those of the last seconds.
type logStream struct {
	after  string // everything up to it was seen
	recent []recentLine
	seen   map[string]bool // of recent
}

type recentLine struct {
	id string
	at time.Time
}

func (s *logStream) poll(ctx context.Context, c *Client, id, level string, fn func(fleet.LogLine) error) error {
	after := s.after
	for {
		var p fleet.List[fleet.LogLine]
		q := logQuery(fleet.LogFilter{Level: level, After: after})
		q.Set("limit", fmt.Sprint(logPage))
		if err := c.call(ctx, request{method: "GET", path: path("devices", id, "logs"), query: q}, &p); err != nil {
			return err
		}
		now := time.Now()
		for _, l := range p.Items {
			after = l.ID
			if s.seen[l.ID] {
				continue
			}
			if err := fn(l); err != nil {
				return err
			}
			s.seen[l.ID] = true
			s.recent = append(s.recent, recentLine{l.ID, now})
		}
		if len(p.Items) < logPage {
			break
		}
	}
	for len(s.recent) > 0 && time.Since(s.recent[0].at) > logLate {
		s.after = s.recent[0].id
		delete(s.seen, s.after)
		s.recent = s.recent[1:]
	}
	return nil
}

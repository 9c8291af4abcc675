package logs

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/kernexhq/kernex/pkg/protocol"
)

// What may be sent: so many bytes a minute in the long run, and one batch of
// this size at once. A metered link of a device is not its operator's to fill.
const (
	bytesPerMinute = 256 << 10
	batchBytes     = 32 << 10
)

// gather is how long a batch waits for more lines, so that a program that says
// much costs few messages.
const gather = 300 * time.Millisecond

// Sender publishes a batch of lines; an error means that it is lost.
type Sender func(ctx context.Context, payload []byte) error

// Shipper sends lines of a File when it is asked to. It goes on over lost
// connections and sends no line twice in the life of the process.
type Shipper struct {
	file  *File
	send  Sender
	limit *rate.Limiter

	asks  chan protocol.Logs
	taken span
	out   packer
}

// span is the numbers of the lines that were taken to be sent, with all in
// between.
type span struct{ low, high int64 }

func (s span) has(n int64) bool { return s != span{} && n >= s.low && n <= s.high }

func (s *span) take(n int64) {
	if *s == (span{}) {
		*s = span{n, n}
	}
	s.low, s.high = min(s.low, n), max(s.high, n)
}

// NewShipper returns a Shipper; Run makes it work.
func NewShipper(f *File, send Sender) *Shipper { return newShipper(f, send, bytesPerMinute) }

func newShipper(f *File, send Sender, perMinute int) *Shipper {
	return &Shipper{file: f, send: send, asks: make(chan protocol.Logs, 1),
		limit: rate.NewLimiter(rate.Limit(perMinute)/60, max(batchBytes, perMinute/4))}
}

// Ask makes Run send what r says. It never blocks: of several that come at once
// the last counts.
func (s *Shipper) Ask(r protocol.Logs) {
	for {
		select {
		case s.asks <- r:
			return
		default:
		}
		select {
		case <-s.asks:
		default:
		}
	}
}

// Run sends until ctx ends.
func (s *Shipper) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-s.asks:
			for again := true; again; {
				r, again = s.serve(ctx, r)
			}
		}
	}
}

// serve does what was asked for until it is done; a new request takes over what
// is left of the old one's time.
func (s *Shipper) serve(ctx context.Context, r protocol.Logs) (next protocol.Logs, again bool) {
	f := newFeed()
	defer s.file.unfollow(f)
	var since time.Time
	if r.Since > 0 {
		since = time.UnixMilli(r.Since)
	}
	p := &s.out
	before := s.taken
	for _, l := range s.file.follow(r.Lines, since, f) {
		if before.has(l.n) {
			continue
		}
		s.taken.take(l.n)
		if !p.add(ctx, s, l.LogLine) {
			return r, false
		}
	}
	end := time.Now().Add(time.Duration(r.FollowS) * time.Second)
	for time.Now().Before(end) {
		select {
		case <-ctx.Done():
			return r, false
		case next := <-s.asks:
			p.flush(ctx, s)
			next.FollowS = max(next.FollowS, int(time.Until(end)/time.Second))
			return next, true
		case l := <-f.lines:
			s.taken.take(l.n)
			p.add(ctx, s, l.LogLine)
			p.gather(ctx, f.lines, s)
			p.lost += f.lost.Swap(0)
			p.flush(ctx, s)
		case <-time.After(min(time.Until(end), time.Second)):
			p.lost += f.lost.Swap(0)
			p.flush(ctx, s)
		}
	}
	p.flush(ctx, s)
	return r, false
}

// packer puts lines into batches.
type packer struct {
	batch protocol.Log
	size  int
	lost  int64
}

// add puts a line into the batch and sends the batch before if it is full;
// false means that ctx has ended.
func (p *packer) add(ctx context.Context, s *Shipper, l protocol.LogLine) bool {
	b, err := json.Marshal(l)
	if err != nil {
		p.lost++
		return true
	}
	if p.size+len(b)+1 > batchBytes || len(p.batch.Lines) == protocol.MaxLogBatch-1 {
		p.flush(ctx, s)
	}
	p.batch.Lines = append(p.batch.Lines, l)
	p.size += len(b) + 1
	return ctx.Err() == nil
}

// gather waits a moment for further lines.
func (p *packer) gather(ctx context.Context, lines <-chan line, s *Shipper) {
	timer := time.NewTimer(gather)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case l := <-lines:
			s.taken.take(l.n)
			if !p.add(ctx, s, l.LogLine) {
				return
			}
		}
	}
}

// flush sends the batch when the limit allows it. Meanwhile lines pile up in
// the feed, which is bounded.
func (p *packer) flush(ctx context.Context, s *Shipper) {
	if p.lost > 0 {
		p.batch.Lines = append(p.batch.Lines, protocol.LogLine{Time: time.Now().UnixMilli(), Level: "warn", Source: sourceAgent,
			Message: fmt.Sprintf("%d lines left out: too many at once, or no connection", p.lost)})
	}
	if len(p.batch.Lines) == 0 {
		return
	}
	payload, err := json.Marshal(p.batch)
	count := int64(len(p.batch.Lines))
	if p.lost > 0 {
		count--
	}
	p.batch.Lines, p.size = nil, 0
	if err == nil {
		err = s.limit.WaitN(ctx, min(len(payload), s.limit.Burst()))
	}
	if err == nil {
		err = s.send(ctx, payload)
	}
	if err != nil {
		p.lost += count // told when a batch gets through
		return
	}
	p.lost = 0
}

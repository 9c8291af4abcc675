package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// maxEvent bounds one event in the stream, in bytes.
const maxEvent = 1 << 20

// Follow says where an event stream starts and what happens when it breaks.
type Follow struct {
	Selector string                           // devices by label; empty is all events
	After    string                           // the number of the last event already seen; empty starts with what comes next
	Dropped  func(err error, w time.Duration) // told of each lost connection and the wait before the next; may be nil
}

// Events calls fn with each event, in order, until ctx ends or fn or the API
// says no; it returns that error, which is never nil. A connection that breaks
// is made again and goes on after the last event that fn has seen, so fn sees
// none twice and misses none.
func (c *Client) Events(ctx context.Context, f Follow, fn func(protocol.CloudEvent) error) error {
	s := stream{last: f.After, fn: fn}
	for try := 0; ; try++ {
		err := c.follow(ctx, f.Selector, &s)
		var fatal *fatalError
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("follow events of %s: %w", c.url, ctx.Err())
		case errors.As(err, &fatal):
			return fatal.err
		}
		if s.progress {
			try, s.progress = 0, false
		}
		wait := backoff(try)
		if f.Dropped != nil {
			f.Dropped(err, wait)
		}
		retry{after: wait}.wait(ctx, try)
	}
}

// fatalError ends the stream: a new connection would meet it again.
type fatalError struct{ err error }

func (e *fatalError) Error() string { return e.err.Error() }

type stream struct {
	last     string
	fn       func(protocol.CloudEvent) error
	progress bool // this connection brought something
}

func (c *Client) follow(ctx context.Context, selector string, s *stream) error {
	q := url.Values{}
	set(q, "selector", selector)
	req, err := c.newRequest(ctx, request{method: http.MethodGet, path: "/events", query: q}, nil, "")
	if err != nil {
		return &fatalError{err}
	}
	req.Header.Set("Accept", "text/event-stream")
	if s.last != "" {
		req.Header.Set("Last-Event-ID", s.last)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return c.problem(resp)
	case resp.StatusCode != http.StatusOK:
		return &fatalError{c.problem(resp)}
	case kind != "text/event-stream":
		return &fatalError{fleet.Errorf(fleet.CodeUnsupported, "%s answered %q instead of an event stream: is this the address of Kernex?", c.url, kind)}
	}
	if err := s.read(resp.Body); err != nil {
		return err
	}
	return c.unreachable(ctx, io.ErrUnexpectedEOF)
}

// read parses one connection's stream: fields up to an empty line make an
// event; an event that the connection cut short is dropped, it comes again.
func (s *stream) read(r io.Reader) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxEvent)
	sc.Split(scanLines)
	var (
		data []byte
		id   string
	)
	for sc.Scan() {
		line := sc.Bytes()
		if len(line) == 0 {
			if err := s.dispatch(id, data); err != nil {
				return err
			}
			data, id = nil, ""
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "data":
			if len(data)+len(value) > maxEvent {
				return &fatalError{fleet.Errorf(fleet.CodeTooLarge, "an event is larger than %d bytes", maxEvent)}
			}
			if data != nil {
				data = append(data, '\n')
			}
			data = append(data, value...)
		case "id":
			if !bytes.ContainsRune(value, 0) {
				id = string(value)
			}
		}
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		return &fatalError{fleet.Errorf(fleet.CodeTooLarge, "an event is larger than %d bytes", maxEvent)}
	}
	return nil
}

// dispatch hands one event over. A number that is not above the last one was
// seen before: a server that starts its replay early repeats itself. An id
// without data is where a later connection may start.
func (s *stream) dispatch(id string, data []byte) error {
	if len(data) > 0 {
		var e protocol.CloudEvent
		if err := json.Unmarshal(data, &e); err != nil {
			return &fatalError{fleet.Wrap(fleet.CodeInternal, err, fmt.Sprintf("event %s is not a CloudEvent in JSON", id))}
		}
		if id == "" {
			id = e.ID
		}
		n, err := strconv.ParseInt(id, 10, 64)
		last, lastErr := strconv.ParseInt(s.last, 10, 64)
		if err == nil && lastErr == nil && n <= last {
			return nil
		}
		if err := s.fn(e); err != nil {
			return &fatalError{err}
		}
		s.progress = true
	}
	if id != "" {
		s.last = id
	}
	return nil
}

// scanLines splits at \n, \r\n or \r, as event streams do.
func scanLines(data []byte, atEOF bool) (int, []byte, error) {
	i := bytes.IndexAny(data, "\r\n")
	switch {
	case i < 0 && atEOF:
		return len(data), nil, nil // cut short
	case i < 0:
		return 0, nil, nil
	case data[i] == '\n':
		return i + 1, data[:i], nil
	case i+1 < len(data) && data[i+1] == '\n':
		return i + 2, data[:i], nil
	case i+1 == len(data) && !atEOF:
		return 0, nil, nil // \n may follow
	}
	return i + 1, data[:i], nil
}

package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Bounds of the event streams.
const (
	eventBeat  = 15 * time.Second // between two signs of life; also when a stream looks by itself
	eventWrite = 10 * time.Second // for one batch to reach the client
	eventBatch = 500
	maxStreams = 1000 // at once
)

// wake is a bell that every stream hears.
type wake struct {
	mu      sync.Mutex
	bell    chan struct{} // closed to ring, then replaced
	closed  chan struct{}
	once    sync.Once
	streams int
}

func newWake() *wake { return &wake{bell: make(chan struct{}), closed: make(chan struct{})} }

func (w *wake) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.bell)
	w.bell = make(chan struct{})
}

func (w *wake) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bell
}

func (w *wake) close() { w.once.Do(func() { close(w.closed) }) }

// enter counts a stream in, unless there are too many.
func (w *wake) enter() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.streams >= maxStreams {
		return false
	}
	w.streams++
	return true
}

func (w *wake) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.streams--
}

// registerEvents adds GET /events, a plain handler: it never ends by itself.
func (a *API) registerEvents() {
	op := &huma.Operation{
		OperationID: "stream-events", Method: http.MethodGet, Path: "/events", Summary: "Follow events as they happen", Tags: []string{"events"},
		Description: "Server-sent events: id is the event's number, data a CloudEvent 1.0 in JSON. Last-Event-ID goes on after that number; without it the stream begins with what comes next.",
		Extensions:  map[string]any{"x-kernex-role": string(fleet.RoleViewer)},
		Parameters: []*huma.Param{
			{Name: "Last-Event-ID", In: "header", Schema: &huma.Schema{Type: "integer", Format: "int64"}, Description: "Number of the last event seen"},
			{Name: "selector", In: "query", Schema: &huma.Schema{Type: "string"}, Description: "Devices by labels; deployments that have one of them are shown too"},
		},
		Responses: map[string]*huma.Response{},
	}
	answerDocs(a.huma, op, protocol.CloudEvent{}, "text/event-stream", http.StatusOK)
	a.huma.OpenAPI().AddOperation(op)
	a.mux.HandleFunc("GET "+base+"/events", a.stream)
}

// stream is one client's view of the events.
type stream struct {
	w        io.Writer
	rc       *http.ResponseController
	caller   caller
	selector fleet.Selector
	after    int64
}

func (a *API) stream(w http.ResponseWriter, r *http.Request) {
	s := &stream{w: w, rc: http.NewResponseController(w), caller: callerOf(r.Context())}
	err := a.streamStart(r, s)
	if err == nil && !a.events.enter() {
		err = fleet.Errorf(fleet.CodeUnavailable, "%d event streams are open, no more are served", maxStreams)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	defer a.events.leave()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // a proxy must not wait for more
	_ = s.rc.SetReadDeadline(time.Time{})
	if err := s.send(fmt.Sprintf("id: %d\n\n", s.after)); err != nil {
		return
	}
	requestOf(r.Context()).err = a.follow(r, s)
}

// streamStart decides where the stream begins.
func (a *API) streamStart(r *http.Request, s *stream) error {
	if err := allow(s.caller, fleet.RoleViewer); err != nil {
		return err
	}
	var err error
	if s.selector, err = fleet.ParseSelector(r.URL.Query().Get("selector")); err != nil {
		return err
	}
	last := r.Header.Get("Last-Event-ID")
	if last == "" {
		s.after, err = a.cfg.Store.LastEvent(r.Context())
		return err
	}
	if s.after, err = strconv.ParseInt(last, 10, 64); err != nil || s.after < 0 {
		return fleet.Errorf(fleet.CodeInvalid, "Last-Event-ID %.40q is no event's number", last)
	}
	return nil
}

// follow sends events until the client goes, the token ends or the server
// stops, which are no errors.
func (a *API) follow(r *http.Request, s *stream) error {
	ctx := r.Context()
	beat := time.NewTicker(eventBeat)
	defer beat.Stop()
	for {
		bell := a.events.next() // before reading, so that nothing is missed between
		more, err := a.sendNew(ctx, s)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case more:
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.events.closed:
			return nil
		case <-bell:
		case <-beat.C:
			// A stream must not outlive the token that opened it.
			if _, err := a.caller(ctx, r, s.caller.actor.Remote); err != nil && fleet.ErrorCode(err) != fleet.CodeUnavailable {
				return nil
			}
			if err := s.send(": \n\n"); err != nil {
				return nil
			}
		}
	}
}

// sendNew sends the next batch and reports whether there may be more.
func (a *API) sendNew(ctx context.Context, s *stream) (more bool, err error) {
	events, upTo, err := a.cfg.Store.EventsAfter(ctx, s.after, s.caller.scope, s.selector, eventBatch)
	if err != nil {
		return false, fmt.Errorf("read events: %w", err)
	}
	var text []byte
	for _, e := range events {
		data, err := json.Marshal(protocol.NewCloudEvent(a.cfg.Fleet, e))
		if err != nil {
			return false, fmt.Errorf("encode event %d: %w", e.Number, err)
		}
		text = fmt.Appendf(text, "id: %d\ndata: %s\n\n", e.Number, data)
	}
	if len(text) > 0 {
		if err := s.send(string(text)); err != nil {
			return false, err
		}
	}
	more = upTo-s.after >= eventBatch
	s.after = upTo
	return more, nil
}

func (s *stream) send(text string) error {
	_ = s.rc.SetWriteDeadline(time.Now().Add(eventWrite))
	if _, err := io.WriteString(s.w, text); err != nil {
		return fmt.Errorf("write to the stream: %w", err)
	}
	if err := s.rc.Flush(); err != nil {
		return fmt.Errorf("flush the stream: %w", err)
	}
	return nil
}

package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func sse(n int) string {
	return fmt.Sprintf("id: %d\nevent: x\ndata: {\"specversion\":\"1.0\",\"id\":\"%d\",\"type\":\"kernex.device.online\",\"subject\":\"dev-%d\"}\n\n", n, n, n)
}

func TestAStreamThatDropsGoesOnWithoutGapOrRepeat(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		send := func(parts ...string) {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			_, _ = fmt.Fprint(w, strings.Join(parts, ""))
		}
		last := r.Header.Get("Last-Event-ID")
		switch call := calls.Add(1); {
		case call == 1 && last == "10" && r.FormValue("selector") == "a=b":
			send(": hello\n\n", sse(11), sse(12), sse(13)[:40]) // cut in the middle of an event
		case call == 2 && last == "12":
			answer(w, http.StatusServiceUnavailable, map[string]any{"title": "starting", "code": "unavailable"})
		case call == 3 && last == "12":
			send("retry: 1\n", sse(12), sse(13)) // starts its replay early
		case call == 4 && last == "13":
			send(strings.ReplaceAll(sse(14), "\n", "\r\n"))
		default:
			t.Errorf("call %d with Last-Event-ID %q, selector %q", call, last, r.FormValue("selector"))
		}
	})
	done := errors.New("done")
	var seen []string
	var drops int
	err := c.Events(t.Context(), Follow{Selector: "a=b", After: "10", Dropped: func(error, time.Duration) { drops++ }}, func(e protocol.CloudEvent) error {
		seen = append(seen, e.Subject)
		if e.ID == "14" {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || strings.Join(seen, " ") != "dev-11 dev-12 dev-13 dev-14" || drops != 3 {
		t.Fatalf("%v; %d drops; saw %q", err, drops, seen)
	}
}

func TestAStreamThatIsRefusedEnds(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]http.HandlerFunc{
		"unauthorized": func(w http.ResponseWriter, r *http.Request) {
			answer(w, http.StatusUnauthorized, map[string]any{"title": "no", "code": "unauthorized"})
		},
		"unsupported": func(w http.ResponseWriter, r *http.Request) { answer(w, http.StatusOK, 1) },
		"internal": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = fmt.Fprint(w, "id: 1\ndata: no json\n\n")
		},
		"too_large": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = fmt.Fprint(w, "data: "+strings.Repeat("x", 2<<20))
		},
	} {
		err := serve(t, h).Events(t.Context(), Follow{}, func(protocol.CloudEvent) error { return nil })
		if fleet.ErrorCode(err) != fleet.Code(name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAStreamEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
	})
	if err := c.Events(ctx, Follow{}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// FuzzStream: whatever a server sends, parsing ends, and numbers that fn sees
// only rise.
func FuzzStream(f *testing.F) {
	f.Add([]byte(sse(1) + sse(2)))
	f.Add([]byte("data: {}\r\rid:5\r\ndata:{\ndata:}\n\n:c\nid\n\n"))
	f.Add([]byte("id: 1\x00\n\ndata\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := stream{fn: func(protocol.CloudEvent) error { return nil }}
		if err := s.read(strings.NewReader(string(b))); err != nil {
			var fatal *fatalError
			if !errors.As(err, &fatal) {
				t.Fatal(err)
			}
		}
	})
}

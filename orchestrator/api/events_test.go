package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// follow opens an event stream and returns its events as they come; the channel
// closes at the stream's end.
func (e *env) follow(path string, headers ...header) (events <-chan protocol.CloudEvent, first string) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 30*time.Second)
	e.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url+"/api/v1"+path, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+e.admin)
	for _, h := range headers {
		req.Header.Set(h.name, h.value)
	}
	resp, err := http.DefaultClient.Do(req) //nolint:bodyclose // the goroutine below does
	if err != nil {
		e.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		e.t.Fatalf("%s: %s %s", path, resp.Status, resp.Header.Get("Content-Type"))
	}
	sc := bufio.NewScanner(resp.Body)
	sc.Scan()
	first = sc.Text()
	out := make(chan protocol.CloudEvent)
	go func() {
		defer close(out)
		defer resp.Body.Close()
		id := ""
		for sc.Scan() {
			if v, ok := strings.CutPrefix(sc.Text(), "id: "); ok {
				id = v
			}
			if v, ok := strings.CutPrefix(sc.Text(), "data: "); ok {
				var ev protocol.CloudEvent
				if err := json.Unmarshal([]byte(v), &ev); err != nil || ev.ID != id {
					e.t.Errorf("event %s: %q: %v", id, v, err)
				}
				select {
				case out <- ev:
				case <-ctx.Done():
				}
			}
		}
	}()
	return out, first
}

// number does the publisher's work and wakes the streams.
func (e *env) number() {
	e.t.Helper()
	e.sql(`UPDATE events SET number = id WHERE number IS NULL`)
	e.api.WakeEvents()
}

func next(t *testing.T, events <-chan protocol.CloudEvent) protocol.CloudEvent {
	t.Helper()
	select {
	case ev, ok := <-events:
		if !ok {
			t.Fatal("the stream ended")
		}
		return ev
	case <-time.After(20 * time.Second):
		t.Fatal("no event came")
	}
	return protocol.CloudEvent{}
}

func TestEventsComeInOrderAndGoOnAfterTheLastSeen(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	a := e.device(nil).ID
	e.number()
	events, first := e.follow("/events")
	if first != "id: 1" {
		t.Errorf("the stream begins with %q", first)
	}
	b := e.device(nil).ID
	e.call("POST", "/devices/"+b+"/quarantine", nil).into(http.StatusOK, nil)
	e.number()
	one, two := next(t, events), next(t, events)
	if one.Type != fleet.EventDeviceRegistered || one.Subject != b || one.ID != "2" || one.SpecVersion != "1.0" || one.Source != "kernex/test" {
		t.Errorf("first: %+v", one)
	}
	if two.Type != fleet.EventDeviceCredential || two.ID != "3" {
		t.Errorf("second: %+v", two)
	}
	again, _ := e.follow("/events", header{"Last-Event-ID", "0"})
	if ev := next(t, again); ev.Subject != a || ev.ID != "1" {
		t.Errorf("from the start: %+v", ev)
	}
	if ev := next(t, again); ev.ID != "2" {
		t.Errorf("then: %+v", ev)
	}
}

func TestAnEventStreamShowsOnlyWhatItMay(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.bundle("edge", "1.0.0")
	berlin := e.device(fleet.Labels{"site": "berlin"}).ID
	paris := e.device(fleet.Labels{"site": "paris"}).ID
	for _, id := range []string{paris, berlin} {
		e.deploy(map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{id}}).into(http.StatusCreated, nil)
	}
	e.number()
	for name, events := range map[string]<-chan protocol.CloudEvent{
		"selector": func() <-chan protocol.CloudEvent {
			c, _ := e.follow("/events"+query("selector", "site=berlin"), header{"Last-Event-ID", "0"})
			return c
		}(),
		"scope": func() <-chan protocol.CloudEvent {
			c, _ := e.follow("/events", header{"Last-Event-ID", "0"}, as(e.token(fleet.RoleViewer, "site=berlin")))
			return c
		}(),
	} {
		if ev := next(t, events); ev.Subject != berlin {
			t.Errorf("%s: first %+v", name, ev)
		}
		if ev := next(t, events); ev.Type != fleet.EventDeploymentCreated || ev.ID != "4" {
			t.Errorf("%s: second %+v", name, ev)
		}
	}
}

func TestCloseEndsTheStreams(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	events, _ := e.follow("/events")
	e.api.Close()
	e.api.Close()
	select {
	case _, ok := <-events:
		if ok {
			t.Error("an event came")
		}
	case <-time.After(20 * time.Second):
		t.Error("the stream goes on")
	}
}

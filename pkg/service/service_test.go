package service_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/pkg/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// diary records what happens, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) add(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, s)
}

func (d *diary) part(name string) service.Service {
	return service.Service{
		Name:  name,
		Start: func(context.Context) error { d.add("start " + name); return nil },
		Run:   func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		Stop:  func(context.Context) error { d.add("stop " + name); return nil },
	}
}

func group(parts ...service.Service) *service.Group {
	g := service.NewGroup(zerolog.Nop())
	for _, p := range parts {
		g.Add(p)
	}
	return g
}

func expect(t *testing.T, d *diary, want string) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(want, ", "), d.lines); diff != "" {
		t.Error(diff)
	}
}

func TestServicesStartInOrderAndStopInReverse(t *testing.T) {
	t.Parallel()
	var d diary
	ctx, cancel := context.WithCancel(t.Context())
	err := group(d.part("a"), d.part("b"), d.part("c")).Run(ctx, func() { d.add("ready"); cancel() })
	if err != nil {
		t.Error(err)
	}
	expect(t, &d, "start a, start b, start c, ready, stop c, stop b, stop a")
}

func TestTheFirstFailureEndsAll(t *testing.T) {
	t.Parallel()
	var d diary
	bad := errors.New("port in use")
	b := d.part("b")
	fail := make(chan struct{})
	b.Run = func(context.Context) error { <-fail; return bad }
	err := group(d.part("a"), b, d.part("c")).Run(t.Context(), func() { close(fail) })
	if !errors.Is(err, bad) || !strings.HasPrefix(err.Error(), "b: ") {
		t.Errorf("error: %v", err)
	}
	expect(t, &d, "start a, start b, start c, stop c, stop b, stop a")
}

func TestAServiceThatEndsWithoutErrorEndsNothing(t *testing.T) {
	t.Parallel()
	var d diary
	ended := make(chan struct{})
	a := d.part("a")
	a.Run = func(context.Context) error { close(ended); return nil }
	ctx, cancel := context.WithCancel(t.Context())
	if err := group(a, d.part("b")).Run(ctx, func() { <-ended; d.add("ready"); cancel() }); err != nil {
		t.Error(err)
	}
	expect(t, &d, "start a, start b, ready, stop b, stop a")
}

func TestAFailedStartStopsWhatWasStarted(t *testing.T) {
	t.Parallel()
	var d diary
	bad := errors.New("no database")
	b := d.part("b")
	b.Start = func(context.Context) error { return bad }
	err := group(d.part("a"), b, d.part("c")).Run(t.Context(), func() { t.Error("ready") })
	if !errors.Is(err, bad) || !strings.HasPrefix(err.Error(), "start b: ") {
		t.Errorf("error: %v", err)
	}
	expect(t, &d, "start a, stop a")
}

func TestAFailureCutsALaterStartShort(t *testing.T) {
	t.Parallel()
	var d diary
	bad := errors.New("gone")
	a, b := d.part("a"), d.part("b")
	starting := make(chan struct{})
	a.Run = func(context.Context) error { <-starting; return bad }
	b.Start = func(ctx context.Context) error { close(starting); <-ctx.Done(); return ctx.Err() }
	if err := group(a, b).Run(t.Context(), nil); !errors.Is(err, bad) || strings.Contains(err.Error(), "canceled") {
		t.Errorf("error: %v", err)
	}
	expect(t, &d, "start a, stop a")
}

func TestEndingDuringTheStartIsNoError(t *testing.T) {
	t.Parallel()
	var d diary
	ctx, cancel := context.WithCancel(t.Context())
	b := d.part("b")
	b.Start = func(ctx context.Context) error { cancel(); <-ctx.Done(); return ctx.Err() }
	if err := group(d.part("a"), b, d.part("c")).Run(ctx, nil); err != nil {
		t.Error(err)
	}
	expect(t, &d, "start a, stop a")
}

func TestAServiceThatDoesNotStopDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	var d diary
	release := make(chan struct{})
	defer close(release)
	b := d.part("b")
	b.Stop = func(context.Context) error { <-release; return nil }
	b.StopTimeout = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	err := group(d.part("a"), b).Run(ctx, cancel)
	if err == nil || err.Error() != "stop b: not within 20ms" {
		t.Errorf("error: %v", err)
	}
	expect(t, &d, "start a, start b, stop a")
}

func TestErrorsOfStoppingAreReturned(t *testing.T) {
	t.Parallel()
	var d diary
	bad := errors.New("flush")
	a := d.part("a")
	a.Stop = func(context.Context) error { return bad }
	ctx, cancel := context.WithCancel(t.Context())
	if err := group(a).Run(ctx, cancel); !errors.Is(err, bad) {
		t.Errorf("error: %v", err)
	}
}

func TestEveryFunctionMayBeNil(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	if err := group(service.Service{Name: "x"}).Run(ctx, cancel); err != nil {
		t.Error(err)
	}
}

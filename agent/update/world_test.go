package update

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// crash is the panic that stands for a power cut.
type crash struct{}

// world is a device: what survives a power cut, and what does not. It
// implements every part of the machine, and the power can go before and after
// the effect of each call.
type world struct {
	t *rapid.T

	journal  map[string]json.RawMessage
	archive  bool
	staging  bool
	releases map[string]bool
	current  string

	// Lost with the power.
	running string

	faults map[string]bool // deploy, health, rollback, start: whether that of the new release fails
	later  int             // how often the deploy script asks for later first
	bad    int             // how often the old release's deploy script fails

	ill    map[string]int // tidy, start: how often it fails first
	healed func()         // called when tidy works again

	calls, crashAt int
	deploys        map[string]int // successes by release
	writes         int
	results        map[string]protocol.Result // every terminal result seen
}

const oldID, newID = "old", "new"

func (w *world) tick() {
	w.calls++
	if w.calls == w.crashAt {
		panic(crash{})
	}
}

// do is a call: the power may go before or after f.
func (w *world) do(f func()) {
	w.tick()
	f()
	w.tick()
}

func (w *world) Read(key string, v any) (bool, error) {
	raw, ok := w.journal[key]
	if !ok {
		return false, nil
	}
	return true, json.Unmarshal(raw, v)
}

func (w *world) Write(values map[string]any) error {
	w.do(func() {
		next := maps.Clone(w.journal)
		for k, v := range values {
			raw, err := json.Marshal(v)
			if err != nil {
				w.t.Fatal(err)
			}
			w.monotonic(k, next[k], raw)
			next[k] = raw
		}
		w.journal = next
		w.writes++
	})
	return nil
}

// monotonic holds I5.
func (w *world) monotonic(key string, before, after json.RawMessage) {
	switch key {
	case "update/highest_seq", "update/closed_through", "update/issued_at":
		var a, b int64
		_ = json.Unmarshal(before, &a)
		_ = json.Unmarshal(after, &b)
		if b < a {
			w.t.Fatalf("%s went from %d to %d", key, a, b)
		}
	}
}

func (w *world) Fetch(context.Context, protocol.BundleRef, int64, func(context.Context) (protocol.BundleRef, error), func(int64)) error {
	w.do(func() { w.archive = true })
	return nil
}

func (w *world) info(id string) *bundle.Info {
	return &bundle.Info{Release: id, Manifest: w.manifest(id)}
}

func (w *world) manifest(id string) *bundle.Manifest {
	m := &bundle.Manifest{Name: "demo", Version: map[string]string{oldID: "1.0.0", newID: "2.0.0"}[id], Run: &bundle.Run{Command: []string{"./run"}}}
	if w.faults["has rollback"] {
		m.Rollback = &bundle.Script{Script: "rollback"}
	}
	if w.faults["offline"] {
		m.Health = &bundle.Health{NeedsNetwork: true, WindowS: 1}
	}
	return m
}

func (w *world) Verify(_ context.Context, ref protocol.BundleRef) (*bundle.Info, error) {
	w.tick()
	if !w.archive {
		return nil, errors.New("no archive")
	}
	return w.info(ref.Release), nil
}

func (w *world) Extract(_ context.Context, ref protocol.BundleRef) (*bundle.Info, error) {
	if !w.archive {
		return nil, errors.New("no archive")
	}
	w.do(func() { w.staging = true })
	w.do(func() { w.releases[ref.Release] = true; w.staging = false })
	return w.info(ref.Release), nil
}

func (w *world) Discard(protocol.BundleRef) error {
	w.do(func() { w.archive = false })
	return nil
}

func (w *world) Current() (string, error) { return w.current, nil }

func (w *world) Manifest(id string) (*bundle.Manifest, error) {
	if !w.releases[id] {
		return nil, fleet.Errorf(fleet.CodeNotFound, "no release %s", id)
	}
	return w.manifest(id), nil
}

func (w *world) Whole(id string) (*bundle.Info, error) {
	if _, err := w.Manifest(id); err != nil {
		return nil, err
	}
	return w.info(id), nil
}

func (w *world) Switch(id string) error {
	if id != "" && !w.releases[id] {
		w.t.Fatalf("switched to %q, which is not whole", id)
	}
	w.do(func() { w.current = id })
	return nil
}

func (w *world) fails(what string) bool {
	w.ill[what]--
	return w.ill[what] >= 0
}

func (w *world) Tidy(releases, archives []string) error {
	if w.fails("tidy") {
		return errors.New("no tidying")
	}
	if w.healed != nil {
		defer w.healed()
	}
	w.do(func() {
		w.staging = false
		for id := range w.releases {
			if id != w.current && !contains(releases, id) {
				delete(w.releases, id)
			}
		}
		w.archive = w.archive && len(archives) > 0
	})
	return nil
}

func contains(s []string, v string) bool {
	for _, x := range s {
		if x == v {
			return true
		}
	}
	return false
}

func (w *world) Deploy(_ context.Context, r Release, _ time.Duration) Outcome {
	if !w.releases[r.ID] {
		w.t.Fatalf("the deploy script of %s ran, which is not whole", r.ID)
	}
	w.tick()
	switch {
	case r.ID == newID && w.later > 0:
		w.later--
		return Outcome{Err: errors.New("exit status 75"), Later: true}
	case r.ID == newID && w.faults["deploy"]:
		return Outcome{Err: fleet.Errorf(fleet.CodeScript, "deploy failed")}
	case r.ID == oldID && w.bad > 0:
		w.bad--
		return Outcome{Err: fleet.Errorf(fleet.CodeScript, "old deploy failed")}
	}
	w.do(func() { w.deploys[r.ID]++ })
	return Outcome{Output: "deployed " + r.ID}
}

func (w *world) Rollback(context.Context, Release, time.Duration) Outcome {
	w.tick()
	if w.bad > 0 {
		w.bad--
		return Outcome{Err: fleet.Errorf(fleet.CodeScript, "rollback failed")}
	}
	return Outcome{}
}

func (w *world) Health(_ context.Context, r Release) Outcome {
	w.tick()
	if w.running != r.ID || r.ID == newID && w.faults["health"] {
		return Outcome{Err: fleet.Errorf(fleet.CodeHealth, "not healthy")}
	}
	return Outcome{}
}

func (w *world) Start(r Release) error {
	if w.fails("start") {
		return errors.New("no start")
	}
	w.do(func() { w.running = r.ID })
	return nil
}

func (w *world) Stop() { w.do(func() { w.running = "" }) }

func (w *world) Admit(*bundle.Info) error     { return nil }
func (w *world) Progress(protocol.Result)     {}
func (w *world) Request(protocol.Request)     {}
func (w *world) Changed()                     {}
func (w *world) Configure(fleet.Config) error { return nil }
func (w *world) Reached(ctx context.Context, _ time.Time) error {
	if w.faults["offline"] {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}
func (w *world) Now() (time.Time, bool) { return time.Unix(1_800_000_000, 0), true }

// boot is one life of the agent, until everything is done or the power goes.
func (w *world) boot(take ...protocol.Command) (m *Machine, survived bool) {
	w.running = ""
	w.calls = 0
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(crash); !ok {
				panic(r)
			}
			m, survived = nil, false
		}
	}()
	m, err := New(Parts{Journal: w, Fetcher: w, Archives: w, Releases: w, Programs: w, Trust: w, Reporter: w, Log: zerolog.Nop()}, Options{Keep: 2, Pause: time.Millisecond})
	if err != nil {
		w.t.Fatal(err)
	}
	m.begin()
	if len(m.owed) > 0 {
		w.t.Fatal(m.owed[0].name)
	}
	for _, c := range take {
		if err := m.Take(c); err != nil && fleet.ErrorCode(err) == fleet.CodeInternal {
			w.t.Fatal(err)
		}
	}
	for steps := 0; m.busy(); steps++ {
		if steps > 2*maxSteps {
			w.t.Fatalf("no end after %d steps: %+v", steps, m.ledger.book.Op)
		}
		if err := m.step(context.Background()); err != nil && !errors.Is(err, errCancelled) && !errors.Is(err, errClosed) && !errors.Is(err, errNewer) {
			w.t.Fatal(err)
		}
	}
	return m, true
}

// note holds I3: a terminal result never changes.
func (w *world) note() {
	var done []Done
	_, _ = w.Read("update/done", &done)
	for _, d := range done {
		if was, ok := w.results[d.Result.Command]; ok && fmt.Sprint(was.State, was.Error) != fmt.Sprint(d.Result.State, d.Result.Error) {
			w.t.Fatalf("the result of %s was %+v and is %+v", d.Result.Command, was, d.Result)
		}
		w.results[d.Result.Command] = d.Result
	}
}

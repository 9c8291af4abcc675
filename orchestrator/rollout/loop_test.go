package rollout_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/dispatch"
	"github.com/kernexhq/kernex/orchestrator/ingest"
	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/orchestrator/postgres"
	"github.com/kernexhq/kernex/orchestrator/rollout"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var _ rollout.Store = (*postgres.DB)(nil)

type noStore struct{}

func (noStore) Presign(_ context.Context, key string, ttl time.Duration) (string, time.Time, string, error) {
	return "http://store/" + key, time.Now().Add(ttl), "etag", nil
}

// replica runs one orchestrator's loops until the returned function is called.
func replica(t testing.TB, s *looptest.Scene) (in *ingest.Ingest, stop func()) {
	t.Helper()
	l := postgres.NewListener(s.DSN, testkit.Logger(t))
	in, err := ingest.New(ingest.Config{
		Topics: s.Topics, Store: s.DB, Publisher: s.Wire, CommandKey: s.Key.Public().(ed25519.PublicKey), SealKey: make([]byte, 32),
		Log: testkit.Logger(t), FlushEvery: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := dispatch.New(dispatch.Config{
		Topics: s.Topics, Store: s.DB, Publisher: s.Wire, Presigner: noStore{}, CommandKey: s.Key, Wake: l.Wake(postgres.WorkDispatch), Log: testkit.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	e := rollout.New(rollout.Config{Store: s.DB, Wake: l.Wake(postgres.WorkRollout), Log: testkit.Logger(t)})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, f := range []func(context.Context) error{l.Run, in.Run, d.Run, e.Run} {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	return in, sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// lossy is a fleet that speaks the protocol over a wire that loses messages:
// each device does a command once, keeps its result until an ack names it and
// is reborn now and then.
type lossy struct {
	t     testing.TB
	s     *looptest.Scene
	loss  float64
	bad   map[string]bool // devices that roll back
	inbox chan looptest.Message
	send  func(topic string, payload []byte)

	session map[string]int64
	results map[string]map[string]protocol.Result // by device and command, not acknowledged
	done    map[string]map[string]bool
}

func newLossy(t testing.TB, s *looptest.Scene, loss float64) *lossy {
	f := &lossy{t: t, s: s, loss: loss, bad: map[string]bool{}, inbox: make(chan looptest.Message, 1<<16),
		session: map[string]int64{}, results: map[string]map[string]protocol.Result{}, done: map[string]map[string]bool{}}
	s.Wire.Follow(func(m looptest.Message) { f.inbox <- m })
	return f
}

func (f *lossy) lost() bool { return rand.Float64() < f.loss }

func (f *lossy) say(id string, kind protocol.Kind, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		f.t.Error(err)
	}
	if !f.lost() {
		f.send(f.s.Topics.Device(id, kind), b)
	}
}

func (f *lossy) birth(id string) {
	f.session[id]++
	f.say(id, protocol.KindState, looptest.State(f.session[id]))
}

// run plays the fleet until ctx ends.
func (f *lossy) run(ctx context.Context, ids []string) {
	for _, id := range ids {
		f.results[id], f.done[id] = map[string]protocol.Result{}, map[string]bool{}
		f.birth(id)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-f.inbox:
			kind, id, ok := f.s.Topics.Parse(m.Topic)
			if ok && !f.lost() {
				f.take(kind, id, m.Payload)
			}
		case <-tick.C:
			for _, id := range ids {
				for _, r := range f.results[id] {
					f.say(id, protocol.KindResult, r)
				}
				if rand.IntN(8) == 0 {
					f.birth(id)
				}
			}
		}
	}
}

func (f *lossy) take(kind protocol.Kind, id string, payload []byte) {
	switch kind {
	case protocol.KindAck:
		var a protocol.Ack
		if err := json.Unmarshal(payload, &a); err != nil {
			f.t.Error(err)
		}
		for _, r := range a.Results {
			delete(f.results[id], r.Command)
		}
	case protocol.KindCommand:
		c, err := protocol.OpenCommand(payload, f.s.Key.Public().(ed25519.PublicKey))
		if err != nil {
			f.t.Error(err)
			return
		}
		if f.done[id][c.ID] {
			return
		}
		f.done[id][c.ID] = true
		f.say(id, protocol.KindResult, protocol.Result{Command: c.ID, State: fleet.TargetAccepted})
		r := protocol.Result{Command: c.ID, State: fleet.TargetSucceeded, DurationMS: 5}
		if f.bad[id] {
			r.State, r.Error = fleet.TargetRolledBack, &protocol.ErrorDetail{Code: fleet.CodeHealth, Message: "health check: self-test failed"}
		}
		f.results[id][c.ID] = r
		f.say(id, protocol.KindResult, r)
	}
}

func TestDeploymentEndsRightOverALossyWireWithTwoReplicasAndARestart(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	var ids []string
	for range 30 {
		ids = append(ids, s.Device())
	}
	f := newLossy(t, s, 0.2)
	f.bad[ids[3]] = true
	first, stopFirst := replica(t, s)
	defer stopFirst()
	second, stopSecond := replica(t, s)
	defer stopSecond()
	f.send = func(topic string, payload []byte) {
		in := second
		if rand.IntN(2) == 0 {
			in = first // which is stopped on the way: then the message is lost
		}
		in.Receive(topic, payload)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { f.run(ctx, ids) })
	good := s.Deploy(s.Bundle("edge", "1.0.0"), ids[4:]...)
	mixed := s.Deploy(s.Bundle("other", "1.0.0"), ids[:4]...)
	testkit.Eventually(t, 30*time.Second, func() bool { return s.Deployment(good).Progress[fleet.TargetSucceeded] > 5 })
	stopFirst()
	testkit.Eventually(t, 60*time.Second, func() bool {
		return s.Deployment(good).Status.Final() && s.Deployment(mixed).Status.Final()
	})
	cancel()
	wg.Wait()
	if d := s.Deployment(good); d.Status != fleet.DeploymentSuccess || d.Progress[fleet.TargetSucceeded] != 26 {
		t.Fatalf("deployment is %+v", d)
	}
	d := s.Deployment(mixed)
	if want := "1 of 4 targets rolled back: device " + ids[3] + ": health check: self-test failed"; d.Status != fleet.DeploymentFailed || d.Reason != want {
		t.Fatalf("deployment is %s: %q, want %q", d.Status, d.Reason, want)
	}
	for _, id := range ids {
		h, err := s.DB.History(t.Context(), id, nil, fleet.Page{Limit: 10})
		if err != nil || len(h.Items) != 1 || h.Items[0].Late {
			t.Fatalf("history of %s is %+v, %v", id, h.Items, err)
		}
	}
}

func BenchmarkDeploymentToEveryDevice(b *testing.B) {
	const devices = 1000
	s := looptest.Open(b)
	var ids []string
	for range devices {
		ids = append(ids, s.Online())
	}
	_, stop := replica(b, s)
	defer stop()
	n := 0
	for b.Loop() {
		n++
		var mu sync.Mutex
		got, all := 0, make(chan struct{})
		s.Wire.Follow(func(m looptest.Message) {
			if strings.HasSuffix(m.Topic, "/command") {
				mu.Lock()
				if got++; got == devices {
					close(all)
				}
				mu.Unlock()
			}
		})
		s.Deploy(s.Bundle("edge", "1.0."+string(rune('0'+n%10))+strings.Repeat("1", n/10)), ids...)
		<-all
	}
}

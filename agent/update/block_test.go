package update

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// stuck is a Fetcher that never gets anything: the network is silent.
type stuck struct{ begun chan string }

func (s stuck) Fetch(ctx context.Context, ref protocol.BundleRef, _ int64, _ func(context.Context) (protocol.BundleRef, error), _ func(int64)) error {
	s.begun <- ref.Version
	<-ctx.Done()
	return ctx.Err()
}

func cancelCommand(id string, seq int64, of string) protocol.Command {
	return protocol.Command{ID: id, Device: "dev", Seq: seq, Type: protocol.CommandCancel, IssuedAt: 1_799_999_000, Cancel: &protocol.Cancel{Command: of}}
}

// once runs f with a world; the state machine needs no random input here.
func once(t *testing.T, f func(t *rapid.T, w *world)) {
	t.Helper()
	ran := false
	rapid.Check(t, func(t *rapid.T) {
		if !ran {
			ran = true
			f(t, newWorld(t))
		}
	})
}

func TestACancelIsHonouredInEveryStateBeforeApplyingAndRefusedAfterwards(t *testing.T) {
	t.Parallel()
	for _, row := range table {
		if row.resume == Wait {
			continue // no record is in it
		}
		t.Run(string(row.state), func(t *testing.T) {
			t.Parallel()
			once(t, func(t *rapid.T, w *world) {
				w.boot(deployCommand("first", 1, oldID, "1.0.0"))
				w.archive, w.releases[newID] = true, true
				c := deployCommand("second", 2, newID, "2.0.0")
				op := Record{Command: c, State: row.state, Previous: oldID}
				if err := w.Write(map[string]any{"update/op": op}); err != nil {
					t.Fatal(err)
				}
				before := w.deploys[newID]
				m, _ := w.boot(cancelCommand("stop", 3, "second"))
				second, _ := m.ledger.book.result("second")
				stop, _ := m.ledger.book.result("stop")
				if row.cancel != (second.State == fleet.TargetCancelled) || row.cancel != (stop.State == fleet.TargetSucceeded) {
					t.Fatalf("second %+v, stop %+v", second, stop)
				}
				if row.cancel && (w.current != oldID || w.running != oldID || w.deploys[newID] != before || w.archive || w.staging) {
					t.Fatalf("cancelled, and the device has changed: %+v", w)
				}
				if !row.cancel && stop.Error.Code != fleet.CodeConflict {
					t.Fatalf("%+v", stop.Error)
				}
			})
		})
	}
}

func TestABlockedDownloadBlocksNoConfigurationCancelOrNewerDeployment(t *testing.T) {
	t.Parallel()
	once(t, func(t *rapid.T, w *world) {
		s := stuck{begun: make(chan string, 4)}
		m, err := New(Parts{Journal: w, Fetcher: s, Archives: w, Releases: w, Programs: w, Trust: w, Reporter: w, Log: zerolog.Nop()}, Options{Pause: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		defer func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		take := func(c protocol.Command) protocol.Result {
			if err := m.Take(c); err != nil {
				t.Fatal(err)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			r, _ := m.ledger.book.result(c.ID)
			return r
		}
		take(deployCommand("first", 1, oldID, "1.0.0"))
		if v := <-s.begun; v != "1.0.0" {
			t.Fatal(v)
		}
		conf := protocol.Command{ID: "conf", Device: "dev", Seq: 2, Type: protocol.CommandConfigure, Configure: &protocol.Configure{Config: fleet.DefaultConfig()}}
		if r := take(conf); r.State != fleet.TargetSucceeded {
			t.Fatalf("configure: %+v", r)
		}
		take(deployCommand("second", 3, newID, "2.0.0"))
		if v := <-s.begun; v != "2.0.0" {
			t.Fatalf("%s is fetched", v)
		}
		if r, _ := m.ledger.book.result("first"); r.State != fleet.TargetCancelled || r.Error.Code != fleet.CodeSuperseded {
			t.Fatalf("first: %+v", r)
		}
		if r := take(cancelCommand("stop", 4, "second")); r.State != fleet.TargetSucceeded {
			t.Fatalf("stop: %+v", r)
		}
		take(deployCommand("third", 5, oldID, "1.0.0"))
		if v := <-s.begun; v != "1.0.0" {
			t.Fatalf("%s is fetched", v)
		}
		if r, _ := m.ledger.book.result("second"); r.State != fleet.TargetCancelled || r.Error.Code != fleet.CodeCancelled {
			t.Fatalf("second: %+v", r)
		}
	})
}

func TestAReleaseThatNeedsTheNetworkIsKeptOnlyIfTheBrokerWasReached(t *testing.T) {
	t.Parallel()
	once(t, func(t *rapid.T, w *world) {
		w.boot(deployCommand("first", 1, oldID, "1.0.0"))
		w.faults["offline"] = true
		m, _ := w.boot(deployCommand("second", 2, newID, "2.0.0"))
		r, _ := m.ledger.book.result("second")
		if r.State != fleet.TargetRolledBack || r.Error.Code != fleet.CodeHealth || w.current != oldID {
			t.Fatalf("%+v %+v, on %q", r, r.Error, w.current)
		}
		if want := "back from 2.0.0 to 1.0.0: "; !strings.HasPrefix(r.Error.Message, want) || !strings.Contains(r.Error.Message, "broker was not reached") {
			t.Fatalf("%q does not begin with %q", r.Error.Message, want)
		}
	})
}

func TestWhatFailsAtTheStartIsTriedAgainAndHoldsUpNothingElse(t *testing.T) {
	t.Parallel()
	once(t, func(t *rapid.T, w *world) {
		m, _ := w.boot(deployCommand("first", 1, oldID, "1.0.0"))
		w.running, w.staging = "", true
		w.ill["tidy"], w.ill["start"] = 2, 1
		m.begin()
		if len(m.owed) != 2 {
			t.Fatalf("owed: %+v", m.owed)
		}
		ctx, stop := context.WithCancel(context.Background())
		w.healed = stop
		if m.idle(ctx, 0) {
			t.Fatal("there is something to do")
		}
		if w.running != oldID || w.staging || len(m.owed) != 0 {
			t.Fatalf("running %q, staging %v, owed %+v", w.running, w.staging, m.owed)
		}
	})
}

func TestADiskThatIsNotTidyAfterADeploymentIsTidiedLater(t *testing.T) {
	t.Parallel()
	once(t, func(t *rapid.T, w *world) {
		m, _ := w.boot(deployCommand("first", 1, oldID, "1.0.0"))
		if err := m.Take(deployCommand("second", 2, newID, "2.0.0")); err != nil {
			t.Fatal(err)
		}
		w.ill["tidy"] = 1
		for m.busy() {
			if err := m.step(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		if !w.archive {
			t.Fatal("the test's tidy has worked")
		}
		ctx, stop := context.WithCancel(context.Background())
		w.healed = stop
		if m.idle(ctx, 0) || w.archive {
			t.Fatal("the archive is still there")
		}
	})
}

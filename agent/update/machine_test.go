package update

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func deployCommand(id string, seq int64, release, version string) protocol.Command {
	return protocol.Command{ID: id, Device: "dev", Seq: seq, Type: protocol.CommandDeploy, IssuedAt: 1_799_999_000, Deploy: &protocol.Deploy{
		Deployment: "dep-" + id, Bundle: protocol.BundleRef{Name: "demo", Version: version, Release: release, Checksum: release, Size: 1, URL: "http://x"}}}
}

func newWorld(t *rapid.T) *world {
	return &world{t: t, journal: map[string]json.RawMessage{}, releases: map[string]bool{}, faults: map[string]bool{}, ill: map[string]int{}, deploys: map[string]int{}, results: map[string]protocol.Result{}}
}

// The device is crashed at up to four points of a deployment, recovery
// included, with every combination of failing scripts; afterwards it must be in
// one of the states that a person could have wished for, and know which.
func TestWhateverCrashesTheDeviceEndsOnOneWholeReleaseAndKnowsWhich(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		before := ""
		if rapid.Bool().Draw(t, "has an old release") {
			if _, ok := w.boot(deployCommand("first", 1, oldID, "1.0.0")); !ok || w.current != oldID {
				t.Fatalf("the first deployment: current %q", w.current)
			}
			before = oldID
		}
		w.note()
		for _, f := range []string{"deploy", "health", "has rollback"} {
			w.faults[f] = rapid.Bool().Draw(t, f)
		}
		later := rapid.IntRange(0, maxDeploys+1).Draw(t, "later")
		w.later = later
		w.bad = rapid.SampledFrom([]int{0, 0, 1, 1000}).Draw(t, "failing returns")
		oldDeploys := w.deploys[newID]
		c := deployCommand("second", 2, newID, "2.0.0")
		crashes := rapid.SliceOfN(rapid.IntRange(1, 60), 0, 4).Draw(t, "crashes")
		for _, at := range crashes {
			w.crashAt = at
			w.boot(c) // the command is sent again until its result is known
			w.note()
		}
		w.crashAt = 0
		m, _ := w.boot(c)
		w.note()

		r, ok := w.results["second"]
		if !ok {
			t.Fatal("no result")
		}
		want := before
		switch r.State {
		case fleet.TargetSucceeded:
			want = newID
			if w.faults["deploy"] || w.faults["health"] || w.deploys[newID]-oldDeploys != 1 {
				t.Fatalf("succeeded with faults %v after %d deploys", w.faults, w.deploys[newID])
			}
		case fleet.TargetRolledBack:
		case fleet.TargetFailed:
			if r.Error.Code == fleet.CodeInconsistent && m.ledger.book.Broken == "" {
				t.Fatal("inconsistent and not marked so")
			}
		default:
			t.Fatalf("%+v", r)
		}
		if len(crashes) == 0 && !w.faults["deploy"] && !w.faults["health"] && later < maxDeploys && r.State != fleet.TargetSucceeded {
			t.Fatalf("nothing went wrong: %+v %+v", r, r.Error)
		}
		if w.current != want || w.running != want {
			t.Fatalf("%s %+v: current %q, running %q, want %q", r.State, r.Error, w.current, w.running, want)
		}
		if want != "" && !w.releases[want] || w.staging || w.archive {
			t.Fatalf("disk: %v, staging %v, archive %v", w.releases, w.staging, w.archive)
		}
		if a := m.Report().Active.Release; a != want {
			t.Fatalf("it reports %q and is on %q", a, want)
		}
		if w.deploys[newID]-oldDeploys > 1 {
			t.Fatalf("the deploy script succeeded %d times", w.deploys[newID])
		}
		if due, _ := m.Due(time.Now()); !slices.ContainsFunc(due, func(p protocol.Result) bool { return p.Command == "second" }) {
			t.Fatal("the result is not sent")
		}
	})
}

func TestEveryTransitionOfTheTableIsBounded(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := Record{State: rapid.SampledFrom(table).Draw(t, "row").state}
		r.Steps = rapid.IntRange(0, maxSteps+5).Draw(t, "steps")
		r.Deploys = rapid.IntRange(0, maxDeploys+1).Draw(t, "deploys")
		r.Checks = rapid.IntRange(0, maxChecks+1).Draw(t, "checks")
		r.Returns = rapid.IntRange(0, maxReturns+1).Draw(t, "returns")
		switch a := Next(r); a {
		case Fetch, Unpack, Apply, Check:
			if r.Steps >= maxSteps {
				t.Fatalf("%+v: %s", r, a)
			}
		case Return:
			if r.Returns >= maxReturns {
				t.Fatalf("%+v: %s", r, a)
			}
		}
		if r.State.row().cancel && Next(r) == Return || !r.State.row().cancel && Next(r) == Abandon {
			t.Fatalf("%+v: %s", r, Next(r))
		}
	})
	if Next(Record{State: "FROM_THE_FUTURE"}) != Wait {
		t.Error("an unknown state is acted on")
	}
}

func TestWhatTheOrchestratorHasClosedIsGivenUpBeforeItChangesAnything(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		c := deployCommand("second", 2, newID, "2.0.0")
		later := deployCommand("third", 3, oldID, "1.0.0")
		later.ClosedThrough = 2
		w.boot(c, later)
		w.note()
		if r := w.results["second"]; r.State != fleet.TargetCancelled || r.Error.Code != fleet.CodeSuperseded {
			t.Fatalf("%+v", r)
		}
		if r := w.results["third"]; r.State != fleet.TargetSucceeded || w.current != oldID || w.deploys[newID] != 0 {
			t.Fatalf("%+v, on %q", r, w.current)
		}
	})
}

func TestANewerDeploymentSupersedesWhatWaitsAndARepeatMayOnlyChangeTheURL(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		m, _ := w.boot(deployCommand("first", 1, oldID, "1.0.0"))
		newest, waiting := int64(0), "" // what the machine should be left with
		for _, seq := range rapid.Permutation([]int64{2, 3, 4, 5, 6}).Draw(t, "order") {
			id := fmt.Sprint("seq", seq)
			if err := m.Take(deployCommand(id, seq, newID, "2.0.0")); err != nil {
				t.Fatal(err)
			}
			loser := id
			if seq > newest {
				loser, newest, waiting = waiting, seq, id
			}
			if r, _ := m.ledger.book.result(loser); loser != "" && (r.State != fleet.TargetCancelled || r.Error.Code != fleet.CodeSuperseded) {
				t.Fatalf("%s: %+v", loser, r)
			}
			if len(m.ledger.book.Queue) != 1 || m.ledger.book.Queue[0].Command.ID != waiting {
				t.Fatalf("%s waits and not %s", m.ledger.book.Queue[0].Command.ID, waiting)
			}
		}
		last := m.ledger.book.Queue[0].Command
		other := last
		other.Deploy = &protocol.Deploy{Deployment: "other", Bundle: last.Deploy.Bundle}
		if err := m.Take(other); fleet.ErrorCode(err) != fleet.CodeInvalid {
			t.Fatalf("the same id with another body: %v", err)
		}
		again := last
		d := *last.Deploy
		d.Bundle.URL = "http://fresh"
		again.Deploy = &d
		if err := m.Take(again); err != nil || m.open(again.ID).Command.Deploy.Bundle.URL != "http://fresh" {
			t.Fatalf("a fresh URL: %v", err)
		}
	})
}

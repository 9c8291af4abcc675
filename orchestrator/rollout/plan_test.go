package rollout

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// world is a deployment as the tables hold it, with devices that do anything.
type world struct {
	state  fleet.RolloutState
	all    map[string]*fleet.RolloutTarget
	finals map[string]int // how often each target became final
	busy   map[string]bool
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld(t *rapid.T) *world {
	n := rapid.IntRange(1, 8).Draw(t, "targets")
	w := &world{all: map[string]*fleet.RolloutTarget{}, finals: map[string]int{}, busy: map[string]bool{}}
	w.state = fleet.RolloutState{ID: "dep", Status: fleet.DeploymentPending, Now: epoch, Deadline: epoch.Add(time.Hour), Total: n}
	for i := range n {
		id := fmt.Sprintf("d%d", i)
		w.all[id] = &fleet.RolloutTarget{DeviceID: id, State: fleet.TargetPending, Deadline: w.state.Deadline}
	}
	return w
}

// look returns the state that the store would load.
func (w *world) look() fleet.RolloutState {
	s := w.state
	s.Final, s.Open, s.Failure = map[fleet.TargetState]int{}, nil, nil
	for i := range s.Total {
		t := w.all[fmt.Sprintf("d%d", i)]
		if !t.State.Final() {
			// The store leaves out what can only be waited for, or some of it.
			if t.State != fleet.TargetPending || !w.busy[t.DeviceID] || s.Cancel || !t.Deadline.After(s.Now) {
				s.Open = append(s.Open, *t)
			}
			continue
		}
		s.Final[t.State]++
		if t.State != fleet.TargetSucceeded && s.Failure == nil {
			s.Failure = &fleet.RolloutFailure{DeviceID: t.DeviceID, State: t.State, Message: "its own words"}
		}
	}
	return s
}

func (w *world) become(t *rapid.T, target *fleet.RolloutTarget, next fleet.TargetState) {
	if !target.State.CanBecome(next) {
		t.Fatalf("%s cannot become %s", target.State, next)
	}
	target.State = next
	if next.Final() {
		w.finals[target.DeviceID]++
	}
}

// apply does what the store does, and checks that every decision fits.
func (w *world) apply(t *rapid.T, d fleet.Decision) {
	switch d.Action {
	case fleet.RolloutStart:
		w.status(t, fleet.DeploymentInProgress)
	case fleet.RolloutFinish:
		w.status(t, d.Status)
	}
	for _, id := range d.Devices {
		target := w.all[id]
		switch d.Action {
		case fleet.RolloutOffer:
			if w.state.Cancel || w.busy[id] || target.Revoked {
				t.Fatalf("%s is offered in %+v", id, w.state)
			}
			w.become(t, target, fleet.TargetOffered)
		case fleet.RolloutEnd:
			if d.State == fleet.TargetCancelled && target.Sent && !target.Revoked {
				t.Fatalf("%s is cancelled although the device may have it", id)
			}
			if (d.State == fleet.TargetExpired || d.State == fleet.TargetTimedOut) && (!w.state.MayExpire || target.Deadline.After(w.state.Now)) {
				t.Fatalf("%s is %s before its time", id, d.State)
			}
			w.become(t, target, d.State)
		case fleet.RolloutAskCancel:
			if !w.state.Cancel || target.Cancelled {
				t.Fatalf("%s is asked to cancel twice or without reason", id)
			}
			target.Cancelled = true
		}
	}
}

func (w *world) status(t *rapid.T, next fleet.DeploymentStatus) {
	if !w.state.Status.CanBecome(next) {
		t.Fatalf("deployment is %s and cannot become %s", w.state.Status, next)
	}
	w.state.Status = next
}

// settle plans and applies until nothing is left to do; that must come soon.
func (w *world) settle(t *rapid.T) {
	for range 2 * (len(w.all) + 2) {
		plan := Plan(w.look())
		if len(plan) == 0 {
			return
		}
		for _, d := range plan {
			w.apply(t, d)
		}
	}
	t.Fatalf("planning does not come to rest: %+v", w.look())
}

func (w *world) check(t *rapid.T) {
	open := 0
	for id, target := range w.all {
		if w.finals[id] > 1 {
			t.Fatalf("%s ended %d times", id, w.finals[id])
		}
		if !target.State.Final() {
			open++
			if target.Deadline.IsZero() {
				t.Fatalf("%s in %s has no deadline", id, target.State)
			}
		}
	}
	if w.state.Status.Final() != (open == 0) {
		t.Fatalf("deployment is %s with %d open targets", w.state.Status, open)
	}
}

// event lets a device, an operator or time do something.
func (w *world) event(t *rapid.T) {
	target := w.all[rapid.SampledFrom(sortedIDs(w)).Draw(t, "device")]
	switch rapid.IntRange(0, 7).Draw(t, "event") {
	case 0:
		target.Sent = target.Sent || target.State == fleet.TargetOffered
	case 1, 2, 3: // a result
		next := rapid.SampledFrom(fleet.TargetStates).Draw(t, "reported")
		if next.DeviceMayReport() && target.Sent && target.State.CanBecome(next) {
			w.become(t, target, next)
			target.Deadline = w.state.Now.Add(6 * time.Minute)
		}
	case 4:
		w.state.Now = w.state.Now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "minutes")) * time.Minute)
	case 5:
		w.state.Cancel = w.state.Cancel || rapid.IntRange(0, 3).Draw(t, "cancel") == 0 && !w.state.Status.Final()
	case 6:
		w.busy[target.DeviceID] = rapid.Bool().Draw(t, "busy")
	case 7:
		w.state.MayExpire = rapid.Bool().Draw(t, "may expire")
		target.Revoked = target.Revoked || rapid.IntRange(0, 9).Draw(t, "revoked") == 0
	}
}

func sortedIDs(w *world) []string {
	out := make([]string, 0, len(w.all))
	for i := range w.state.Total {
		out = append(out, fmt.Sprintf("d%d", i))
	}
	return out
}

// thousands checks a property 3,000 times; one Check is a hundred by default.
func thousands(t *testing.T, property func(*rapid.T)) {
	t.Helper()
	for range 30 {
		rapid.Check(t, property)
	}
}

func TestPlanKeepsItsPromisesWhateverDevicesDo(t *testing.T) {
	t.Parallel()
	thousands(t, func(t *rapid.T) {
		w := newWorld(t)
		w.settle(t)
		for range rapid.IntRange(0, 40).Draw(t, "events") {
			w.event(t)
			w.settle(t)
			w.check(t)
		}
		// Progress is always possible: time alone ends every deployment.
		w.state.MayExpire = true
		w.state.Now = w.state.Now.Add(100 * time.Hour)
		w.settle(t)
		w.check(t)
		if !w.state.Status.Final() {
			t.Fatalf("the deployment does not end: %+v", w.look())
		}
	})
}

func TestCancelAlwaysEnds(t *testing.T) {
	t.Parallel()
	thousands(t, func(t *rapid.T) {
		w := newWorld(t)
		w.settle(t)
		for range rapid.IntRange(0, 20).Draw(t, "events") {
			w.event(t)
			w.settle(t)
		}
		if w.state.Status.Final() {
			return
		}
		w.state.Cancel = true
		w.settle(t)
		for _, target := range w.all { // what was not ended at once was asked for
			if !target.State.Final() && !target.Cancelled {
				t.Fatalf("%+v neither ended nor was asked to", target)
			}
			if !target.State.Final() {
				w.become(t, target, fleet.TargetCancelled)
			}
		}
		w.settle(t)
		if !w.state.Status.Final() {
			t.Fatalf("cancelled deployment is %s", w.state.Status)
		}
	})
}

func TestFinishSaysTheFirstFailureInTheDevicesOwnWords(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		state  fleet.RolloutState
		status fleet.DeploymentStatus
		reason string
	}{
		"all succeeded": {fleet.RolloutState{Total: 2, Final: map[fleet.TargetState]int{fleet.TargetSucceeded: 2}}, fleet.DeploymentSuccess, ""},
		"one rolled back": {fleet.RolloutState{
			Total: 2, Final: map[fleet.TargetState]int{fleet.TargetSucceeded: 1, fleet.TargetRolledBack: 1},
			Failure: &fleet.RolloutFailure{DeviceID: "x", State: fleet.TargetRolledBack, Message: "health check: self-test failed"},
		}, fleet.DeploymentFailed, "1 of 2 targets rolled back: device x: health check: self-test failed"},
		"cancelled":          {fleet.RolloutState{Cancel: true, Total: 1, Final: map[fleet.TargetState]int{fleet.TargetCancelled: 1}}, fleet.DeploymentCancelled, ""},
		"all deleted":        {fleet.RolloutState{}, fleet.DeploymentFailed, "every device of it was deleted"},
		"cancelled, deleted": {fleet.RolloutState{Cancel: true}, fleet.DeploymentCancelled, ""},
		"cancelled too late": {fleet.RolloutState{Cancel: true, Total: 1, Final: map[fleet.TargetState]int{fleet.TargetSucceeded: 1}}, fleet.DeploymentSuccess, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.state.Status = fleet.DeploymentInProgress
			plan := Plan(c.state)
			if len(plan) != 1 || plan[0].Status != c.status || plan[0].Reason != c.reason {
				t.Fatalf("plan is %+v", plan)
			}
		})
	}
}

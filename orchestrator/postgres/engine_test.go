package postgres_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/orchestrator/rollout"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func cancel(t *testing.T, s *looptest.Scene, dep string) {
	t.Helper()
	if _, err := s.DB.CancelDeployment(t.Context(), dep, nil, fleet.Actor{Name: "ann"}); err != nil {
		t.Fatal(err)
	}
	step(t, s, 0)
}

func TestCancelEndsWhatWasNotSentAtOnceAndAsksTheRest(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	away, sent, working := s.Device(), s.Online(), s.Online()
	dep, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), away, sent, working)
	if _, ok := cmds[away]; ok {
		t.Fatal("a command went to a device that is away")
	}
	s.Report(working, protocol.Result{Command: cmds[working].ID, State: fleet.TargetDownloading})
	cancel(t, s, dep)
	if got := s.Targets(dep); got[away].State != fleet.TargetCancelled || got[sent].State != fleet.TargetOffered || got[working].State != fleet.TargetDownloading {
		t.Fatalf("targets are %+v", got)
	}
	asks := claim(t, s)
	for _, id := range []string{sent, working} {
		var body protocol.Cancel
		if err := json.Unmarshal(asks[id].Body, &body); err != nil || asks[id].Type != "cancel" || body.Command != cmds[id].ID {
			t.Fatalf("%s gets %+v, want to give up %s", id, asks[id], cmds[id].ID)
		}
	}
	// What was never taken is not sent again, even to a device that comes back.
	s.Birth(sent, 2)
	if again := claim(t, s); again[sent].Type != "cancel" {
		t.Fatalf("sent again: %+v", again[sent])
	}
	accepted(t, s.Report(sent, succeeded(asks[sent].ID))) // it never had the command
	accepted(t, s.Report(working, failed(cmds[working].ID, fleet.TargetCancelled, fleet.CodeCancelled, "gave up")))
	accepted(t, s.Report(working, succeeded(asks[working].ID)))
	step(t, s, 0)
	if got := s.Deployment(dep); got.Status != fleet.DeploymentCancelled || got.Reason != "cancelled by ann" {
		t.Fatalf("deployment is %s: %q", got.Status, got.Reason)
	}
	if len(history(t, s, working)) != 0 {
		t.Fatal("a cancelled target has a history although nothing ran")
	}
}

func TestDeadlineEndsTargetsByWhatTheyReached(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	away, silent, working := s.Device(), s.Online(), s.Online()
	dep, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), away, silent, working)
	s.Report(working, protocol.Result{Command: cmds[working].ID, State: fleet.TargetVerifying})
	run(t, s, `UPDATE deployment_targets SET deadline = now() - interval '1 second'`)
	step(t, s, 0)
	got := s.Targets(dep)
	if got[away].State != fleet.TargetExpired || got[silent].State != fleet.TargetExpired || got[working].State != fleet.TargetTimedOut {
		t.Fatalf("targets are %+v", got)
	}
	if d := s.Deployment(dep); d.Status != fleet.DeploymentFailed {
		t.Fatalf("deployment is %s", d.Status)
	}
	if n := value[int](t, s, `SELECT count(*) FROM commands WHERE status = 'open'`); n != 0 {
		t.Fatalf("%d commands are open", n)
	}
	if h := history(t, s, working); len(h) != 1 || h[0].Status != "failed" {
		t.Fatalf("history is %+v", h)
	}
}

func TestOutageOfAnHourTimesNothingOut(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	if _, err := s.DB.Tick(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	a := s.Online()
	dep, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	s.Report(a, protocol.Result{Command: cmds[a].ID, State: fleet.TargetDownloading})
	before := s.Targets(dep)[a].Deadline
	// An hour passes in which nothing runs: every stored time is an hour older.
	run(t, s, `UPDATE deployment_targets SET deadline = deadline - interval '1 hour', accepted_at = accepted_at - interval '1 hour'`)
	run(t, s, `UPDATE deployments SET deadline = deadline - interval '1 hour'`)
	run(t, s, `UPDATE commands SET not_after = not_after - interval '1 hour'`)
	run(t, s, `UPDATE device_status SET last_seen = last_seen - interval '1 hour'`)
	run(t, s, `UPDATE settings SET value = jsonb_build_object('at', now() - interval '1 hour', 'since', now() - interval '2 hours') WHERE name = 'engine_tick'`)
	step(t, s, 0) // a replica that has not ticked yet must not expire anything
	if n, err := s.DB.SweepOffline(t.Context(), looptest.Allow); err != nil || n != 0 {
		t.Fatalf("%d devices offline, %v", n, err)
	}
	gap, err := s.DB.Tick(t.Context(), false)
	if err != nil || gap < 59*time.Minute {
		t.Fatalf("gap is %s, %v", gap, err)
	}
	step(t, s, time.Minute)
	if got := s.Targets(dep)[a]; got.State != fleet.TargetDownloading || got.Deadline.Before(before) {
		t.Fatalf("target is %+v, deadline was %s", got, before)
	}
	if n, err := s.DB.SweepOffline(t.Context(), looptest.Allow); err != nil || n != 0 {
		t.Fatalf("%d devices offline, %v", n, err)
	}
	accepted(t, s.Report(a, succeeded(cmds[a].ID)))
	step(t, s, time.Minute)
	if got := s.Deployment(dep).Status; got != fleet.DeploymentSuccess {
		t.Fatalf("deployment is %s", got)
	}
}

func TestNothingExpiresBeforeDevicesHadTimeToReport(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	if _, err := s.DB.Tick(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	dep, _ := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	run(t, s, `UPDATE deployment_targets SET deadline = now() - interval '1 second'`)
	step(t, s, time.Minute)
	if got := s.Targets(dep)[a].State; got != fleet.TargetOffered {
		t.Fatalf("target is %s within the grace", got)
	}
	run(t, s, `UPDATE settings SET value = jsonb_set(value, '{since}', to_jsonb(now() - interval '61 seconds')) WHERE name = 'engine_tick'`)
	step(t, s, time.Minute)
	if got := s.Targets(dep)[a].State; got != fleet.TargetExpired {
		t.Fatalf("target is %s after the grace", got)
	}
}

func TestRevokedDeviceDoesNotHoldADeploymentUp(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	dep, _ := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	if _, err := s.DB.SetCredential(t.Context(), a, "", fleet.CredentialRevoked, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, _, err := s.DB.Step(t.Context(), 0, true, nil, rollout.Plan); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Deployment(dep); got.Status != fleet.DeploymentFailed || s.Targets(dep)[a].State != fleet.TargetCancelled {
		t.Fatalf("deployment is %+v", got)
	}
}

func TestEveryOpenTargetHasADeadlineAndACommandOnceOffered(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	run(t, s, `UPDATE device_status SET highest_seq = 41 WHERE device_id = $1`, a)
	dep, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	if c := cmds[a]; c.Seq != 42 || c.ClosedThrough != 41 || c.Bundle == nil || len(c.Bundle.Parts) != 1 {
		t.Fatalf("command is %+v: a device that has seen 41 needs 42", c)
	}
	if got := s.Targets(dep)[a]; got.Deadline.Before(time.Now().Add(23 * time.Hour)) {
		t.Fatalf("target is %+v", got)
	}
}

func TestDeviceMayBeToldToGiveUpAsLongAsItsTargetIsOpen(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	b := s.Bundle("edge", "1.0.0")
	d, err := s.DB.CreateDeployment(t.Context(), fleet.DeploymentRequest{
		Bundle: b.Name, Version: b.Version, Devices: []string{a}, Rollout: fleet.Rollout{TimeoutS: 2592000},
	}, fleet.System)
	if err != nil {
		t.Fatal(err)
	}
	step(t, s, 0)
	claim(t, s)
	cancel(t, s, d.ID)
	if !value[bool](t, s, `SELECT c.not_after >= t.deadline FROM commands c, deployment_targets t WHERE c.type = 'cancel'`) {
		t.Fatal("the cancellation ends before its target does")
	}
}

package postgres_test

import (
	"math"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func TestDeploymentStatusFollowsItsTargets(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a, b := s.Online(), s.Online()
	dep := s.Deploy(s.Bundle("edge", "1.0.0"), a, b)
	if got := s.Deployment(dep).Status; got != fleet.DeploymentPending {
		t.Fatalf("status is %s before the engine looked", got)
	}
	step(t, s, 0)
	cmds := claim(t, s)
	if got := s.Deployment(dep); got.Status != fleet.DeploymentInProgress || got.Progress[fleet.TargetOffered] != 2 {
		t.Fatalf("deployment is %+v", got)
	}
	if a := s.Report(a, protocol.Result{Command: cmds[a].ID, State: fleet.TargetDownloading, Bytes: 10}); a != nil {
		t.Fatalf("progress was acknowledged: %+v", a)
	}
	accepted(t, s.Report(a, succeeded(cmds[a].ID)))
	step(t, s, 0)
	if got := s.Deployment(dep); got.Status != fleet.DeploymentInProgress || got.Progress[fleet.TargetSucceeded] != 1 {
		t.Fatalf("deployment is %+v", got)
	}
	accepted(t, s.Report(b, succeeded(cmds[b].ID)))
	step(t, s, 0)
	if got := s.Deployment(dep); got.Status != fleet.DeploymentSuccess || got.Reason != "" || got.FinishedAt == nil {
		t.Fatalf("deployment is %+v", got)
	}
}

func TestFailedDeploymentSaysWhyInTheDevicesOwnWords(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a, b := s.Online(), s.Online()
	dep, cmds := offered(t, s, s.Bundle("edge", "2.0.0"), a, b)
	accepted(t, s.Report(a, failed(cmds[a].ID, fleet.TargetRolledBack, fleet.CodeHealth, "health check: self-test failed: no answer")))
	accepted(t, s.Report(b, succeeded(cmds[b].ID)))
	step(t, s, 0)
	want := "1 of 2 targets rolled back: device " + a + ": health check: self-test failed: no answer"
	if got := s.Deployment(dep); got.Status != fleet.DeploymentFailed || got.Reason != want {
		t.Fatalf("deployment is %s: %q, want %q", got.Status, got.Reason, want)
	}
}

func TestHistoryHasARowOnSuccessAndOnFailure(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	for _, c := range []struct {
		version string
		state   fleet.TargetState
		status  string
	}{{"1.0.0", fleet.TargetSucceeded, "success"}, {"1.1.0", fleet.TargetFailed, "failed"}, {"1.2.0", fleet.TargetRolledBack, "rolled_back"}} {
		_, cmds := offered(t, s, s.Bundle("edge", c.version), a)
		accepted(t, s.Report(a, failed(cmds[a].ID, c.state, fleet.CodeScript, "exit status 3")))
		h := history(t, s, a)
		if h[0].Version != c.version || h[0].Status != c.status || h[0].Late {
			t.Fatalf("newest row is %+v, want %s %s", h[0], c.version, c.status)
		}
	}
	_, cmds := offered(t, s, s.Bundle("edge", "1.3.0"), a)
	accepted(t, s.Report(a, failed(cmds[a].ID, fleet.TargetRejected, fleet.CodeWrongDevice, "arm64 only")))
	if n := len(history(t, s, a)); n != 3 {
		t.Fatalf("%d rows after a rejection, want 3: nothing ran", n)
	}
}

func TestCurrentVersionChangesOnlyOnSuccess(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	_, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	s.Report(a, succeeded(cmds[a].ID))
	if v := device(t, s, a).BundleVersion; v != "1.0.0" {
		t.Fatalf("version is %q", v)
	}
	for i, state := range []fleet.TargetState{fleet.TargetFailed, fleet.TargetRolledBack, fleet.TargetRejected, fleet.TargetCancelled} {
		_, cmds = offered(t, s, s.Bundle("edge", "2.0."+string(rune('0'+i))), a)
		s.Report(a, failed(cmds[a].ID, state, fleet.CodeHealth, "no"))
		if v := device(t, s, a).BundleVersion; v != "1.0.0" {
			t.Fatalf("version is %q after %s", v, state)
		}
	}
}

func TestResultFromADeviceThatIsNoTargetIsRefused(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a, stranger := s.Online(), s.Online()
	dep, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	refused(t, s.Report(stranger, succeeded(cmds[a].ID)), fleet.CodeNoTarget)
	refused(t, s.Report(stranger, succeeded("cmd-unknown")), fleet.CodeUnknownCommand)
	if got := s.Targets(dep)[a].State; got != fleet.TargetOffered {
		t.Fatalf("target is %s", got)
	}
	if len(history(t, s, stranger)) != 0 || device(t, s, stranger).BundleVersion != "" {
		t.Fatal("the stranger has a history")
	}
}

func TestResultOfADeviceThatMayNotReportGetsNoAnswer(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	dep, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	if _, err := s.DB.SetCredential(t.Context(), a, "", fleet.CredentialQuarantined, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	if ack := s.Report(a, succeeded(cmds[a].ID)); ack != nil {
		t.Fatalf("ack is %+v", ack)
	}
	if ack := s.Report(a, succeeded("cmd-unknown")); ack != nil {
		t.Fatalf("ack is %+v", ack)
	}
	if got := s.Targets(dep)[a].State; got != fleet.TargetOffered {
		t.Fatalf("target is %s", got)
	}
}

func TestRepeatedResultIsAcceptedAgainAndChangesNothing(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	dep, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	accepted(t, s.Report(a, succeeded(cmds[a].ID)))
	before := s.Targets(dep)[a]
	accepted(t, s.Report(a, succeeded(cmds[a].ID)))
	if after := s.Targets(dep)[a]; *after.FinishedAt != *before.FinishedAt || len(history(t, s, a)) != 1 {
		t.Fatalf("target is %+v", after)
	}
}

func TestResultForAFinalTargetIsKeptAsLate(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	dep, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	s.Report(a, protocol.Result{Command: cmds[a].ID, State: fleet.TargetAccepted})
	run(t, s, `UPDATE deployment_targets SET deadline = now() - interval '1 second'`)
	step(t, s, 0)
	if got := s.Targets(dep)[a].State; got != fleet.TargetTimedOut {
		t.Fatalf("target is %s", got)
	}
	refused(t, s.Report(a, succeeded(cmds[a].ID)), fleet.CodeLate)
	refused(t, s.Report(a, succeeded(cmds[a].ID)), fleet.CodeLate)
	if got := s.Targets(dep)[a].State; got != fleet.TargetTimedOut {
		t.Fatalf("target became %s", got)
	}
	h := history(t, s, a)
	if len(h) != 2 || !h[0].Late || h[0].Status != "success" || h[1].Status != "failed" {
		t.Fatalf("history is %+v", h)
	}
	if v := device(t, s, a).BundleVersion; v != "1.0.0" {
		t.Fatalf("reported version is %q", v)
	}
}

func TestLateResultDoesNotHideANewerVersion(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	_, old := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	_, newer := offered(t, s, s.Bundle("edge", "1.1.0"), a)
	accepted(t, s.Report(a, succeeded(newer[a].ID)))
	refused(t, s.Report(a, succeeded(old[a].ID)), fleet.CodeLate)
	if v := device(t, s, a).BundleVersion; v != "1.1.0" {
		t.Fatalf("reported version is %q", v)
	}
}

func TestProgressNeverGoesBackAndMovesTheDeadline(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	dep, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	report := func(state fleet.TargetState, bytes int64) fleet.Target {
		s.Report(a, protocol.Result{Command: cmds[a].ID, State: state, Bytes: bytes})
		return s.Targets(dep)[a]
	}
	first := report(fleet.TargetDownloading, 500)
	if first.State != fleet.TargetDownloading || first.AcceptedAt == nil || time.Until(first.Deadline) > 7*time.Minute {
		t.Fatalf("target is %+v", first)
	}
	if got := report(fleet.TargetAccepted, 0); got.State != fleet.TargetDownloading {
		t.Fatalf("target went back to %s", got.State)
	}
	if got := report(fleet.TargetDownloading, 700); got.Bytes != 700 || !got.Deadline.After(first.Deadline) {
		t.Fatalf("target is %+v", got)
	}
	// In all it may not take longer than four steps and an hour.
	run(t, s, `UPDATE deployment_targets SET accepted_at = now() - interval '80 minutes'`)
	if got := report(fleet.TargetInstalling, 700); got.Deadline.After(time.Now()) {
		t.Fatalf("deadline is %s", got.Deadline)
	}
}

func TestNewerDeploymentSupersedesWhatADeviceHasNotAccepted(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a, b := s.Online(), s.Online()
	old, oldCmds := offered(t, s, s.Bundle("edge", "1.0.0"), a, b)
	s.Report(b, protocol.Result{Command: oldCmds[b].ID, State: fleet.TargetInstalling})
	newer := s.Deploy(s.Bundle("edge", "1.1.0"), a, b)
	step(t, s, 0)
	if got := s.Targets(old); got[a].State != fleet.TargetSuperseded || got[b].State != fleet.TargetInstalling {
		t.Fatalf("old targets are %s, %s", got[a].State, got[b].State)
	}
	if got := s.Targets(newer); got[a].State != fleet.TargetOffered || got[b].State != fleet.TargetPending {
		t.Fatalf("new targets are %s, %s: b is at work", got[a].State, got[b].State)
	}
	accepted(t, s.Report(b, succeeded(oldCmds[b].ID)))
	step(t, s, 0)
	if got := s.Targets(newer)[b]; got.State != fleet.TargetOffered || got.PreviousVersion != "1.0.0" {
		t.Fatalf("new target is %+v", got)
	}
	if got := s.Deployment(old); got.Status != fleet.DeploymentFailed {
		t.Fatalf("old deployment is %s", got.Status)
	}
}

func TestTargetThatTimesOutFreesItsDevice(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	old, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	s.Report(a, protocol.Result{Command: cmds[a].ID, State: fleet.TargetInstalling})
	newer := s.Deploy(s.Bundle("edge", "1.1.0"), a)
	step(t, s, 0)
	if got := s.Targets(newer)[a].State; got != fleet.TargetPending {
		t.Fatalf("target is %s while the device is at work", got)
	}
	run(t, s, `UPDATE deployment_targets SET deadline = now() - interval '1 second' WHERE deployment_id = $1`, old)
	step(t, s, 0)
	if got := s.Targets(newer)[a].State; got != fleet.TargetOffered {
		t.Fatalf("target is %s although the device is free", got)
	}
}

func TestResultWithAnAbsurdAttemptIsStored(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	_, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	for _, r := range []protocol.Result{{Command: cmds[a].ID, State: fleet.TargetAccepted}, succeeded(cmds[a].ID)} {
		r.Attempt = math.MaxInt64
		if ack := s.Report(a, r); r.State.Final() {
			accepted(t, ack)
		}
	}
}

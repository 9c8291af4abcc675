package postgres_test

import (
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func TestConfirmedCommandThatTheDeviceHasEndedIsSentAgain(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	_, cmds := offered(t, s, s.Bundle("edge", "1.0.0"), a)
	id := cmds[a].ID
	if ack := s.Report(a, protocol.Result{Command: id, State: fleet.TargetAccepted}); ack != nil {
		t.Fatalf("progress was acknowledged: %+v", ack)
	}
	for i, tc := range []struct {
		last  string
		state fleet.TargetState
		again bool
	}{
		{"", "", false}, // a device that does not say
		{id, fleet.TargetAccepted, false},
		{id, fleet.TargetInstalling, false},
		{id, fleet.TargetSucceeded, true},            // and the result is not here
		{"cmd-of-later", fleet.TargetAccepted, true}, // it went on to others
		{"cmd-of-later", fleet.TargetFailed, true},
	} {
		run(t, s, `UPDATE commands SET next_send_at = 'infinity'`)
		st := looptest.State(1)
		st.StateRev, st.LastCommand, st.LastCommandState = int64(i+2), tc.last, string(tc.state)
		if _, err := s.DB.ApplyState(t.Context(), a, st, looptest.Allow); err != nil {
			t.Fatal(err)
		}
		wait, ok, err := s.DB.NextSend(t.Context())
		if err != nil || ok != tc.again || ok && wait < 7*time.Second {
			t.Errorf("last command %q %s: due in %v, %v, %v, want %v", tc.last, tc.state, wait, ok, err, tc.again)
		}
	}
}

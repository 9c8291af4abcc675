package dispatch_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/orchestrator/dispatch"
	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/orchestrator/postgres"
	"github.com/kernexhq/kernex/orchestrator/rollout"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var _ dispatch.Store = (*postgres.DB)(nil)

// signer counts how often it is asked.
type signer struct{ calls atomic.Int64 }

func (s *signer) Presign(_ context.Context, key string, ttl time.Duration) (string, time.Time, string, error) {
	s.calls.Add(1)
	return "http://store/" + key + "?signed", time.Now().Add(ttl), "etag-1", nil
}

// start runs a dispatcher and an engine on the scene.
func start(t testing.TB, s *looptest.Scene) (urls *signer, stop func()) {
	t.Helper()
	urls = &signer{}
	l := postgres.NewListener(s.DSN, testkit.Logger(t))
	d, err := dispatch.New(dispatch.Config{
		Topics: s.Topics, Store: s.DB, Publisher: s.Wire, Presigner: urls, CommandKey: s.Key,
		Wake: l.Wake(postgres.WorkDispatch), Log: testkit.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	e := rollout.New(rollout.Config{Store: s.DB, Wake: l.Wake(postgres.WorkRollout), Log: testkit.Logger(t)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	for _, f := range []func(context.Context) error{l.Run, d.Run, e.Run} {
		go func() { ended <- f(ctx) }()
	}
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			for range 3 {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
		}
	}
	t.Cleanup(stop)
	return urls, stop
}

func open(t testing.TB, s *looptest.Scene, m looptest.Message) protocol.Command {
	t.Helper()
	c, err := protocol.OpenCommand(m.Payload, s.Key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCommandIsDeliveredSignedWithAURL(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	urls, _ := start(t, s)
	devices := []string{s.Online(), s.Online(), s.Online()}
	b := s.Bundle("edge", "1.0.0")
	dep := s.Deploy(b, devices...)
	for _, id := range devices {
		m := s.Wire.Await(t, s.Topics.Device(id, protocol.KindCommand), 1)[0]
		c := open(t, s, m)
		if c.Device != id || c.Type != protocol.CommandDeploy || c.Seq != 1 || c.ClosedThrough != 0 || c.Deploy.Deployment != dep || m.QoS != 1 || m.Retain {
			t.Fatalf("command is %+v", c)
		}
		ref := c.Deploy.Bundle
		if ref.Release != b.Release || ref.Checksum != b.Checksum || ref.Size != b.Size || ref.Expanded != 3000 || ref.Files != 2 || ref.ETag != "etag-1" || len(ref.Parts) != 1 ||
			ref.URL == "" || ref.URLExpiresAt > time.Now().Add(dispatch.URLLife+time.Minute).Unix() {
			t.Fatalf("bundle is %+v", ref)
		}
	}
	if n := urls.calls.Load(); n > 3 {
		t.Fatalf("%d URLs were signed for one bundle", n)
	}
}

func TestConfigIsDelivered(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	start(t, s)
	id := s.Online()
	interval := 9
	if _, err := s.DB.SetDeviceConfig(t.Context(), id, fleet.ConfigPatch{HeartbeatIntervalS: &interval}, 0, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	c := open(t, s, s.Wire.Await(t, s.Topics.Device(id, protocol.KindCommand), 1)[0])
	if c.Type != protocol.CommandConfigure || c.Configure.Config.HeartbeatIntervalS != 9 || c.Configure.Config.Version != 2 {
		t.Fatalf("command is %+v", c)
	}
}

func TestCommandOfADeviceThatIsAwayWaitsForItsReturn(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	start(t, s)
	away, here := s.Device(), s.Online()
	dep := s.Deploy(s.Bundle("edge", "1.0.0"), away, here)
	s.Wire.Await(t, s.Topics.Device(here, protocol.KindCommand), 1)
	if n := len(s.Wire.On(s.Topics.Device(away, protocol.KindCommand))); n != 0 {
		t.Fatalf("%d commands went to a device that is away", n)
	}
	s.Birth(away, 1)
	c := open(t, s, s.Wire.Await(t, s.Topics.Device(away, protocol.KindCommand), 1)[0])
	if c.Deploy.Deployment != dep {
		t.Fatalf("command is %+v", c)
	}
	s.Birth(away, 2) // and again at each birth until it ends: the same command
	if again := open(t, s, s.Wire.Await(t, s.Topics.Device(away, protocol.KindCommand), 2)[1]); again.ID != c.ID || again.Seq != c.Seq {
		t.Fatalf("sent again as %+v, was %+v", again, c)
	}
}

// TestCommandThatTheBrokerDoesNotTakeIsSentAgain: by itself within seconds, and
// as if it had not been tried.
func TestCommandThatTheBrokerDoesNotTakeIsSentAgain(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	start(t, s)
	s.Wire.Break(fleet.Errorf(fleet.CodeUnavailable, "no broker"))
	id := s.Online()
	s.Deploy(s.Bundle("edge", "1.0.0"), id)
	testkit.Eventually(t, 10*time.Second, func() error { // claimed, and given back: its first backoff is 8 s
		wait, ok, err := s.DB.NextSend(t.Context())
		if err == nil && (!ok || wait < time.Second || wait > 6*time.Second) {
			err = fmt.Errorf("due in %v, %v", wait, ok)
		}
		return err
	})
	s.Wire.Break(nil)
	s.Wire.Await(t, s.Topics.Device(id, protocol.KindCommand), 1)
	testkit.Eventually(t, 10*time.Second, func() error {
		wait, ok, err := s.DB.NextSend(t.Context())
		if err == nil && (!ok || wait < 6*time.Second || wait > 10*time.Second) {
			err = fmt.Errorf("due again in %v, %v, want the first backoff", wait, ok)
		}
		return err
	})
}

func TestNothingIsClaimedWithoutAWayToTheBroker(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	var up atomic.Bool
	var asked atomic.Int64
	d, err := dispatch.New(dispatch.Config{
		Topics: s.Topics, Store: s.DB, Publisher: s.Wire, Presigner: &signer{}, CommandKey: s.Key, Log: testkit.Logger(t),
		Ready: func() bool { asked.Add(1); return up.Load() },
	})
	if err != nil {
		t.Fatal(err)
	}
	id := s.Online()
	s.Deploy(s.Bundle("edge", "1.0.0"), id)
	if _, _, err := s.DB.Step(t.Context(), 0, false, nil, rollout.Plan); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	testkit.Eventually(t, 10*time.Second, func() bool { return asked.Load() >= 4 })
	if wait, ok, err := s.DB.NextSend(t.Context()); err != nil || !ok || wait != 0 {
		t.Errorf("due in %v, %v, %v, want now", wait, ok, err)
	}
	up.Store(true)
	s.Wire.Await(t, s.Topics.Device(id, protocol.KindCommand), 1)
}

func TestLoopsLeaveNoGoroutine(t *testing.T) {
	before := goleak.IgnoreCurrent()
	s := looptest.Open(t)
	_, stop := start(t, s)
	id := s.Online()
	s.Deploy(s.Bundle("edge", "1.0.0"), id)
	s.Wire.Await(t, s.Topics.Device(id, protocol.KindCommand), 1)
	stop()
	_ = s.DB.Close()
	goleak.VerifyNone(t, append(testkit.SharedServers(), before)...)
}

// hung is an object store that does not answer.
type hung struct{}

func (hung) Presign(ctx context.Context, _ string, _ time.Duration) (string, time.Time, string, error) {
	<-ctx.Done()
	return "", time.Time{}, "", ctx.Err()
}

func TestObjectStoreThatHangsHoldsUpNoConfiguration(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	d, err := dispatch.New(dispatch.Config{
		Topics: s.Topics, Store: s.DB, Publisher: s.Wire, Presigner: hung{}, CommandKey: s.Key, Log: testkit.Logger(t), MaxSleep: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	a, b := s.Online(), s.Online()
	s.Deploy(s.Bundle("edge", "1.0.0"), a)
	if _, _, err := s.DB.Step(t.Context(), 0, false, nil, rollout.Plan); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	testkit.Eventually(t, 10*time.Second, func() bool { // the deployment's command was claimed
		wait, ok, err := s.DB.NextSend(t.Context())
		return err == nil && ok && wait > 5*time.Second
	})
	interval := 9
	if _, err := s.DB.SetDeviceConfig(t.Context(), b, fleet.ConfigPatch{HeartbeatIntervalS: &interval}, 0, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	s.Wire.Await(t, s.Topics.Device(b, protocol.KindCommand), 1)
}

func TestTheNextCommandKeySignsForDevicesThatHavePinnedIt(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	public, next, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dispatch.New(dispatch.Config{Topics: s.Topics, Store: s.DB, Publisher: s.Wire, Presigner: &signer{}, CommandKey: s.Key, NextKey: next, Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	old, moved, foreign := s.Online(), s.Online(), s.Online()
	keys := map[string]ed25519.PublicKey{old: s.Key.Public().(ed25519.PublicKey), moved: public}
	for id, key := range map[string]string{old: protocol.CommandKeyText(keys[old]), moved: protocol.CommandKeyText(public), foreign: protocol.CommandKeyText(make([]byte, 32))} {
		st := looptest.State(2)
		st.TrustMode, st.CommandKey = fleet.TrustOpen, key
		if _, err := s.DB.ApplyState(t.Context(), id, st, looptest.Allow); err != nil {
			t.Fatal(err)
		}
	}
	s.Deploy(s.Bundle("edge", "1.0.0"), old, moved, foreign)
	e := rollout.New(rollout.Config{Store: s.DB, Log: testkit.Logger(t)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for _, f := range []func(context.Context) error{d.Run, e.Run} {
		go func() { ended <- f(ctx) }()
	}
	defer func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}()
	for id, key := range keys {
		m := s.Wire.Await(t, s.Topics.Device(id, protocol.KindCommand), 1)[0]
		if _, err := protocol.OpenCommand(m.Payload, key); err != nil {
			t.Errorf("the command for %s: %v", id, err)
		}
	}
	if len(s.Wire.On(s.Topics.Device(foreign, protocol.KindCommand))) > 0 {
		t.Error("a command was signed for a device that could not verify it")
	}
}

package monitor_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/orchestrator/monitor"
	"github.com/kernexhq/kernex/orchestrator/postgres"
	"github.com/kernexhq/kernex/orchestrator/rollout"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var _ monitor.Store = (*postgres.DB)(nil)

func start(t testing.TB, s *looptest.Scene, holder string) (stop func()) {
	t.Helper()
	l := postgres.NewListener(s.DSN, testkit.Logger(t))
	m := monitor.New(monitor.Config{
		Topics: s.Topics, Store: s.DB, Publisher: s.Wire, Fleet: "test", Holder: holder, Wake: l.Wake(postgres.WorkEvents),
		Log: testkit.Logger(t), SettleEvery: 20 * time.Millisecond, SummaryEvery: 20 * time.Millisecond, Lease: 300 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- l.Run(ctx) }()
	go func() { ended <- m.Run(ctx) }()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := errors.Join(<-ended, <-ended); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

func numbers(t testing.TB, s *looptest.Scene) []int64 {
	t.Helper()
	var out []int64
	for _, m := range s.Wire.On(s.Topics.FleetEvents()) {
		n, err := strconv.ParseInt(looptest.Decode[protocol.CloudEvent](t, m).ID, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, n)
	}
	return out
}

func TestEventsArePublishedInOrderAndOnce(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	start(t, s, "one")
	for range 5 {
		s.Online()
	}
	events := s.Wire.Await(t, s.Topics.FleetEvents(), 10)
	for i, n := range numbers(t, s) {
		if n != int64(i+1) {
			t.Fatalf("numbers are %v", numbers(t, s))
		}
	}
	if e := looptest.Decode[protocol.CloudEvent](t, events[1]); e.SpecVersion != "1.0" || e.Source != "kernex/test" || e.Type != fleet.EventDeviceOnline || events[1].QoS != 1 {
		t.Fatalf("event is %+v", e)
	}
}

func TestEventsSurviveABrokerThatIsAwayAndAChangeOfReplica(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	stop := start(t, s, "one")
	s.Online()
	s.Wire.Await(t, s.Topics.FleetEvents(), 2)
	s.Wire.Break(errors.New("no broker"))
	s.Online()
	testkit.Eventually(t, 10*time.Second, func() bool { n, err := s.DB.LastEvent(t.Context()); return err == nil && n == 4 })
	stop()
	s.Wire.Break(nil)
	start(t, s, "two")
	s.Wire.Await(t, s.Topics.FleetEvents(), 4)
	seen := map[int64]bool{}
	last := int64(0)
	for _, n := range numbers(t, s) {
		if n < last {
			t.Fatalf("out of order: %v", numbers(t, s))
		}
		seen[n], last = true, n
	}
	if len(seen) != 4 {
		t.Fatalf("numbers are %v", numbers(t, s))
	}
}

func TestFleetTopicsShowDevicesDeploymentsAndTotals(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	start(t, s, "one")
	a := s.Online()
	dep := s.Deploy(s.Bundle("edge", "1.0.0"), a)
	for {
		id, _, err := s.DB.Step(t.Context(), 0, false, nil, rollout.Plan)
		if err != nil {
			t.Fatal(err)
		}
		if id == "" {
			break
		}
	}
	cmds, err := s.DB.ClaimCommands(t.Context(), 1)
	if err != nil || len(cmds) != 1 {
		t.Fatal(cmds, err)
	}
	testkit.Eventually(t, 10*time.Second, func() bool {
		list := s.Wire.On(s.Topics.FleetDeployment(dep))
		if len(list) == 0 {
			return false
		}
		d := looptest.Decode[protocol.FleetDeployment](t, list[len(list)-1])
		return list[0].Retain && d.Status == fleet.DeploymentInProgress && d.Counts[fleet.TargetOffered] == 1 && d.BundleVersion == "1.0.0"
	})
	s.Report(a, protocol.Result{Command: cmds[0].ID, State: fleet.TargetSucceeded})
	for range 3 {
		if _, _, err := s.DB.Step(t.Context(), 0, false, nil, rollout.Plan); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, 10*time.Second, func() bool {
		deps, devs, sums := s.Wire.On(s.Topics.FleetDeployment(dep)), s.Wire.On(s.Topics.FleetDevice(a)), s.Wire.On(s.Topics.FleetSummary())
		if len(deps) == 0 || len(devs) == 0 || len(sums) == 0 {
			return false
		}
		dev, sum := looptest.Decode[protocol.FleetDevice](t, devs[len(devs)-1]), looptest.Decode[protocol.FleetSummary](t, sums[len(sums)-1])
		return looptest.Decode[protocol.FleetDeployment](t, deps[len(deps)-1]).Status == fleet.DeploymentSuccess &&
			dev.Online && dev.BundleVersion == "1.0.0" && dev.Deployment == "" && sum.Online == 1 && sum.Versions["edge 1.0.0"] == 1 && sum.Deployments == 0 && sums[0].Retain
	})
	if clock := s.Wire.Await(t, s.Topics.Time(), 1)[0]; !clock.Retain || clock.QoS != 0 {
		t.Fatalf("time is %+v", clock)
	}
}

func TestRetainedTopicsAreRepublishedAtTheStart(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Online()
	dep := s.Deploy(s.Bundle("edge", "1.0.0"), a)
	start(t, s, "one")
	s.Wire.Await(t, s.Topics.FleetDeployment(dep), 1)
	s.Wire.Await(t, s.Topics.FleetSummary(), 1)
	s.Wire.Await(t, s.Topics.FleetDevice(a), 1)
	s.Wire.Await(t, s.Topics.Time(), 1)
}

func TestOnlyOneReplicaPublishes(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	start(t, s, "one")
	s.Wire.Await(t, s.Topics.Time(), 1)
	start(t, s, "two")
	for range 10 {
		s.Online()
	}
	s.Wire.Await(t, s.Topics.FleetEvents(), 20)
	if n := numbers(t, s); len(n) != 20 || n[19] != 20 {
		t.Fatalf("numbers are %v", n)
	}
}

func TestMonitorLeavesNoGoroutine(t *testing.T) {
	before := goleak.IgnoreCurrent()
	s := looptest.Open(t)
	stop := start(t, s, "one")
	s.Wire.Await(t, s.Topics.Time(), 1)
	stop()
	_ = s.DB.Close()
	goleak.VerifyNone(t, append(testkit.SharedServers(), before)...)
}

func TestTopicOfADeletedDeviceIsCleared(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	start(t, s, "one")
	a := s.Online()
	s.Wire.Await(t, s.Topics.FleetDevice(a), 1)
	if err := s.DB.DeleteDevice(t.Context(), a, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, func() bool {
		list := s.Wire.On(s.Topics.FleetDevice(a))
		last := list[len(list)-1]
		return len(last.Payload) == 0 && last.Retain
	})
}

func TestBatchThatTakesLongerThanTheLeaseIsPublishedOnce(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	for range 30 {
		s.Device()
	}
	s.Wire.Follow(func(looptest.Message) { <-time.After(20 * time.Millisecond) }) // a broker far away
	start(t, s, "one")
	s.Wire.Await(t, s.Topics.FleetEvents(), 30)
	s.Device()
	s.Wire.Await(t, s.Topics.FleetEvents(), 31)
	for i, n := range numbers(t, s) {
		if n != int64(i+1) {
			t.Fatalf("numbers are %v", numbers(t, s))
		}
	}
}

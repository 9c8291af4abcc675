package ingest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"crypto/ed25519"

	"github.com/kernexhq/kernex/orchestrator/ingest"
	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/orchestrator/postgres"
	"github.com/kernexhq/kernex/orchestrator/rollout"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var _ ingest.Store = (*postgres.DB)(nil)

type env struct {
	*looptest.Scene
	t   testing.TB
	in  *ingest.Ingest
	reg *prometheus.Registry
}

// start runs an ingest for the time of the test; stop may be called before its
// end.
func start(t testing.TB, change ...func(*ingest.Config)) (e *env, stop func()) {
	t.Helper()
	s := looptest.Open(t)
	e = &env{Scene: s, t: t, reg: prometheus.NewRegistry()}
	cfg := ingest.Config{
		Topics: s.Topics, Store: s.DB, Publisher: s.Wire, CommandKey: s.Key.Public().(ed25519.PublicKey), SealKey: bytes.Repeat([]byte{7}, 32),
		Fleet: "test", Registerer: e.reg, Log: testkit.Logger(t), FlushEvery: 10 * time.Millisecond, PendingRate: 1000,
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if e.in, err = ingest.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.in.Run(ctx) }()
	done := false
	stop = func() {
		if cancel(); !done {
			done = true
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return e, stop
}

func (e *env) send(device string, kind protocol.Kind, v any) {
	e.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		e.t.Fatal(err)
	}
	e.in.Receive(e.Topics.Device(device, kind), b)
}

// count adds up a metric over the labels given as "name=value".
func (e *env) count(name string, labels ...string) float64 {
	e.t.Helper()
	families, err := e.reg.Gather()
	if err != nil {
		e.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			has := map[string]bool{}
			for _, l := range m.GetLabel() {
				has[l.GetName()+"="+l.GetValue()] = true
			}
			match := f.GetName() == name
			for _, l := range labels {
				match = match && has[l]
			}
			if match {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func (e *env) acks(device string, n int) []protocol.Ack {
	e.t.Helper()
	var out []protocol.Ack
	for _, m := range e.Wire.Await(e.t, e.Topics.Device(device, protocol.KindAck), n) {
		out = append(out, looptest.Decode[protocol.Ack](e.t, m))
	}
	return out
}

func TestHeartbeatReachesTheDatabaseMerged(t *testing.T) {
	t.Parallel()
	e, stop := start(t, func(c *ingest.Config) { c.FlushEvery = time.Hour })
	a := e.Online()
	cpu, memory := 12.0, 300.0
	e.send(a, protocol.KindHeartbeat, protocol.Heartbeat{Session: 1, Seq: 1, StateRev: 1, Status: "healthy", MemoryMB: &memory})
	e.send(a, protocol.KindHeartbeat, protocol.Heartbeat{Session: 1, Seq: 2, StateRev: 1, CPUPct: &cpu})
	stop() // takes what is queued and flushes it
	d, err := e.DB.Device(t.Context(), a, nil)
	if err != nil || d.CPUPct == nil || *d.CPUPct != 12 || d.MemoryMB == nil || *d.MemoryMB != 300 || d.Health != "healthy" {
		t.Fatalf("device is %+v, %v", d, err)
	}
	if n := e.count("kernex_ingest_flushed_rows_total"); n != 1 {
		t.Fatalf("%v rows were written for two heartbeats of one device", n)
	}
}

func TestStateIsAcknowledgedWithTheTimeAndWantedWhenItDiffers(t *testing.T) {
	t.Parallel()
	e, _ := start(t)
	a := e.Device()
	e.send(a, protocol.KindState, looptest.State(1))
	if got := e.acks(a, 1)[0]; got.Time < time.Now().Add(-time.Minute).Unix() || len(got.Want) != 0 {
		t.Fatalf("ack is %+v", got)
	}
	e.send(a, protocol.KindHeartbeat, protocol.Heartbeat{Session: 1, Seq: 1, StateRev: 2})
	if got := e.acks(a, 2)[1]; len(got.Want) != 1 || got.Want[0] != protocol.WantState {
		t.Fatalf("ack is %+v", got)
	}
}

func TestResultIsAcknowledgedAfterItsCommit(t *testing.T) {
	t.Parallel()
	e, _ := start(t)
	a, stranger := e.Online(), e.Online()
	dep := e.Deploy(e.Bundle("edge", "1.0.0"), a)
	for range 3 {
		if _, _, err := e.DB.Step(t.Context(), 0, false, nil, rollout.Plan); err != nil {
			t.Fatal(err)
		}
	}
	cmds, err := e.DB.ClaimCommands(t.Context(), 10)
	if err != nil || len(cmds) != 1 {
		t.Fatal(cmds, err)
	}
	atAck := make(chan fleet.TargetState, 8) // read to the end: the test must outlive the look
	e.Wire.Follow(func(m looptest.Message) {
		if m.Topic == e.Topics.Device(a, protocol.KindAck) {
			atAck <- e.Targets(dep)[a].State
		}
	})
	e.send(stranger, protocol.KindResult, protocol.Result{Command: cmds[0].ID, State: fleet.TargetSucceeded})
	if got := e.acks(stranger, 1)[0].Results[0]; got.Accepted || got.Code != fleet.CodeNoTarget {
		t.Fatalf("the stranger's ack is %+v", got)
	}
	for _, state := range []fleet.TargetState{fleet.TargetAccepted, fleet.TargetDownloading, fleet.TargetSucceeded} {
		e.send(a, protocol.KindResult, protocol.Result{Command: cmds[0].ID, State: state})
	}
	if s := <-atAck; s != fleet.TargetSucceeded {
		t.Errorf("acknowledged while the target is %s", s)
	}
	if got := e.acks(a, 1)[0].Results[0]; !got.Accepted || got.State != fleet.TargetSucceeded {
		t.Fatalf("ack is %+v", got)
	}
}

func TestWhatDoesNotFitIsDroppedAndCountedAndNeverBlocks(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	reg := prometheus.NewRegistry()
	// Never run: nothing leaves the queues.
	in, err := ingest.New(ingest.Config{Topics: s.Topics, Store: s.DB, Publisher: s.Wire, CommandKey: s.Key.Public().(ed25519.PublicKey),
		SealKey: make([]byte, 32), Registerer: reg, Log: testkit.Logger(t), Workers: 1, QueueSize: 10})
	if err != nil {
		t.Fatal(err)
	}
	e := &env{Scene: s, t: t, in: in, reg: reg}
	for range 25 {
		e.send("d1", protocol.KindResult, protocol.Result{Command: "c", State: fleet.TargetSucceeded})
	}
	if n := e.count("kernex_ingest_dropped_total", "kind=result", "reason=queue_full"); n != 15 {
		t.Fatalf("%v results were dropped", n)
	}
}

func TestBadMessagesAreRefusedAndCounted(t *testing.T) {
	t.Parallel()
	e, stop := start(t)
	a := e.Online()
	deep := strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000)
	for _, kind := range []protocol.Kind{protocol.KindHeartbeat, protocol.KindState, protocol.KindResult, protocol.KindRequest, protocol.KindPresence} {
		payloads := []string{"", "null", "[]", "{", `{"session":1,"session":2}`, deep, strings.Repeat("x", kind.Cap()+1), `{"session":-1}`, `{"session":1e99}`, "\xff\xfe", `{} {}`}
		for _, p := range payloads {
			e.in.Receive(e.Topics.Device(a, kind), []byte(p))
		}
		testkit.Eventually(t, 10*time.Second, func() error {
			if n := e.count("kernex_ingest_dropped_total", "kind="+string(kind), "reason=invalid"); n != float64(len(payloads)) {
				return fmt.Errorf("%s: %v of %d are refused", kind, n, len(payloads))
			}
			return nil
		})
	}
	for _, topic := range []string{"", "kernex/v1", "kernex/v1/devices//state", "kernex/v1/devices/UP/state", "kernex/v1/devices/a/b/state", "other/devices/a/state", e.Topics.Device(a, protocol.KindCommand)} {
		e.in.Receive(topic, []byte("{}"))
	}
	stop()
	if n := len(e.Wire.On(e.Topics.Device(a, protocol.KindAck))); n != 0 {
		t.Fatalf("%d acks for nonsense", n)
	}
}

func TestHeartbeatsSurviveADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	e, stop := start(t, func(c *ingest.Config) { c.Store = &flaky{Store: c.Store, fails: 3} })
	a := e.Online()
	e.send(a, protocol.KindHeartbeat, protocol.Heartbeat{Session: 1, Seq: 1, StateRev: 1, UptimeS: 42})
	testkit.Eventually(t, 10*time.Second, func() bool {
		d, err := e.DB.Device(t.Context(), a, nil)
		return err == nil && d.UptimeS == 42
	})
	stop()
}

// flaky fails the first flushes, as a database that is away does.
type flaky struct {
	ingest.Store
	fails int
}

func (f *flaky) FlushBeats(ctx context.Context, beats []fleet.Beat, allow func(string) bool) ([]string, error) {
	if f.fails > 0 {
		f.fails--
		return nil, fleet.Wrap(fleet.CodeUnavailable, errors.New("connection refused"), "away")
	}
	return f.Store.FlushBeats(ctx, beats, allow)
}

func TestFlappingDeviceCausesBoundedEventsAndIsSettled(t *testing.T) {
	t.Parallel()
	e, stop := start(t, func(c *ingest.Config) { c.FlushEvery, c.DampEvery = time.Millisecond, 3*time.Second })
	a := e.Device()
	for n := range int64(40) {
		e.send(a, protocol.KindState, looptest.State(n+1))
		e.acks(a, int(n+1))
		e.send(a, protocol.KindPresence, protocol.Presence{Session: n + 1})
		testkit.Eventually(t, 10*time.Second, func() bool {
			d, err := e.DB.Device(t.Context(), a, nil)
			return err == nil && d.Status == "offline"
		})
	}
	var last []fleet.Event
	testkit.Eventually(t, 10*time.Second, func() bool {
		g, ok, err := e.DB.AcquireLease(t.Context(), postgres.LeaseEvents, "test", time.Minute)
		if err != nil || !ok {
			return false
		}
		if _, err = e.DB.NumberEvents(t.Context(), g, 1000); err != nil {
			return false
		}
		last, _, err = e.DB.EventsAfter(t.Context(), 0, nil, nil, 1000)
		return err == nil && slices.ContainsFunc(last, func(e fleet.Event) bool { return bytes.Contains(e.Data, []byte("settled")) })
	})
	stop()
	if n := len(last); n > 40 { // of 81 without damping
		t.Fatalf("%d events", n)
	}
	if e := last[len(last)-1]; e.Type != fleet.EventDeviceOffline {
		t.Fatalf("the last event is %+v", e)
	}
}

func TestIngestLeavesNoGoroutine(t *testing.T) {
	before := goleak.IgnoreCurrent()
	e, stop := start(t)
	e.send("d1", protocol.KindHeartbeat, protocol.Heartbeat{Session: 1, Seq: 1})
	stop()
	_ = e.DB.Close()
	goleak.VerifyNone(t, append(testkit.SharedServers(), before)...)
}

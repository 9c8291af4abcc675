package remote

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/mqttclient"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var topics = protocol.NewTopics("")

var logins = brokertest.Logins{"service": {Role: broker.RoleService, ID: "tok-orch"}, "device": {Role: broker.RoleDevice}}

// replica is a transport that runs until the test ends and keeps what it gets.
type replica struct {
	*Transport
	refusals atomic.Int64

	mu  sync.Mutex
	got []string
}

func newReplica(t *testing.T, url string, password *atomic.Value) *replica {
	t.Helper()
	r := &replica{}
	var err error
	r.Transport, err = New(Config{
		Topics: topics, Broker: url, Name: "test", Connections: 3, Log: testkit.Logger(t),
		Login: func(_ context.Context, refused bool) (string, string, error) {
			if refused {
				r.refusals.Add(1)
			}
			return "service", password.Load().(string), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- r.Run(ctx, func(topic string, payload []byte) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.got = append(r.got, topic+" "+string(payload))
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *replica) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func secret(s string) *atomic.Value {
	v := new(atomic.Value)
	v.Store(s)
	return v
}

func dial(t *testing.T, url string, onMessage func(string, []byte)) *mqttclient.Client {
	t.Helper()
	c, err := mqttclient.Dial(t.Context(), mqttclient.Options{Broker: url, ClientID: "dev-a", Username: "dev-a", Password: "device", OnMessage: onMessage})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func TestReplicasDivideMessagesAndOneThatLeavesGetsNoMore(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, nil)
	a, b := newReplica(t, s.URL, secret("service")), newReplica(t, s.URL, secret("service"))
	testkit.Eventually(t, 10*time.Second, func() bool { return a.Up() == 3 && b.Up() == 3 })
	<-a.Connected()
	d := dial(t, s.URL, nil)
	send := func(n int) {
		for i := range n {
			if err := d.Publish(t.Context(), topics.Device("dev-a", protocol.KindState), fmt.Append(nil, i), 1, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(60)
	testkit.Eventually(t, 10*time.Second, func() bool { return a.count()+b.count() == 60 })
	if a.count() < 20 || b.count() < 20 {
		t.Errorf("divided into %d and %d", a.count(), b.count())
	}
	if err := a.Quiesce(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := a.count()
	send(30)
	testkit.Eventually(t, 10*time.Second, func() bool { return a.count()+b.count() == 90 })
	if a.count() != before {
		t.Errorf("%d messages after it left", a.count()-before)
	}
	if err := a.Publish(t.Context(), topics.Time(), []byte("{}"), 0, false); err != nil {
		t.Errorf("one that leaves cannot publish its answers: %v", err)
	}
}

func TestCommandsToADeviceKeepTheirOrder(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, nil)
	r := newReplica(t, s.URL, secret("service"))
	testkit.Eventually(t, 10*time.Second, func() bool { return r.Up() == 3 })
	got := make(chan string, 64)
	d := dial(t, s.URL, func(_ string, payload []byte) { got <- string(payload) })
	command := topics.Device("dev-a", protocol.KindCommand)
	if err := d.Subscribe(t.Context(), command, 1); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := r.Publish(t.Context(), command, fmt.Append(nil, i), 1, false); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		if m := <-got; m != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, m)
		}
	}
	r.Kick("dev-a")
	testkit.Eventually(t, 10*time.Second, func() bool { return d.Err() != nil })
}

func TestWithoutABrokerPublishingIsUnavailableUntilItIsBack(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, nil)
	p := testkit.NewProxy(t, s.Addr().String())
	p.Refuse()
	r := newReplica(t, "tcp://"+p.Addr(), secret("service"))
	testkit.Eventually(t, 10*time.Second, func() bool { return p.Opened() > 0 })
	if err := r.Publish(t.Context(), topics.Time(), []byte("{}"), 1, false); fleet.ErrorCode(err) != fleet.CodeUnavailable {
		t.Errorf("publish: %v", err)
	}
	if r.Ready(t.Context()) == nil {
		t.Error("ready without a connection")
	}
	p.Restore()
	testkit.Eventually(t, 40*time.Second, func() bool { return r.Up() == 3 })
	if err := r.Publish(t.Context(), topics.Time(), []byte("{}"), 1, false); err != nil {
		t.Error(err)
	}
	// A broker that stops answering is no success: nothing was acknowledged.
	p.Blackhole()
	begin := time.Now()
	if err := r.Publish(t.Context(), topics.Time(), []byte("{}"), 1, false); fleet.ErrorCode(err) != fleet.CodeUnavailable || time.Since(begin) > 2*publishTimeout {
		t.Errorf("published into a black hole: %v after %v", err, time.Since(begin))
	}
}

func TestARefusedLoginIsToldToItsMaker(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, nil)
	password := secret("expired")
	r := newReplica(t, s.URL, password)
	testkit.Eventually(t, 10*time.Second, func() bool { return r.refusals.Load() > 0 })
	password.Store("service")
	testkit.Eventually(t, 40*time.Second, func() bool { return r.Up() == 3 })
}

func TestWaitsAreRandomAndBounded(t *testing.T) {
	t.Parallel()
	for n := range 100 {
		if d := wait(n); d < 0 || d >= maxWait {
			t.Errorf("wait %d is %v", n, d)
		}
	}
	if firstWait<<10 < maxWait {
		t.Error("the bound is never reached")
	}
}

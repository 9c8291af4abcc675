package broker_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// willing logs a device in that has a will.
func willing(t *testing.T, s *brokertest.Server, id, payload string) *raw {
	t.Helper()
	c := dial(t, s)
	h := hello{id: id, username: id, password: "device", willTopic: topics.Device(id, protocol.KindPresence), willPayload: payload}
	if code := c.connect(h); code != 0 {
		t.Fatalf("CONNACK %d", code)
	}
	return c
}

func TestAWillReachesTheIngestWhenTheSocketBreaks(t *testing.T) {
	t.Parallel()
	in := new(brokertest.Inbox)
	s := brokertest.Start(t, logins, in)
	polite, broken := willing(t, s, dev, "{1}"), willing(t, s, other, "{2}")
	polite.send([]byte{0xe0, 0})
	polite.wantClosed()
	_ = broken.Close()
	if _, err := in.Wait(testContext(t), topics.Device(other, protocol.KindPresence)); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return s.Connected() == 0 })
	if all := in.All(); len(all) != 1 || all[0].Payload != "{2}" {
		t.Errorf("ingest has %v, want one will", all)
	}
}

func TestNoWillIsSentBecauseTheBrokerStops(t *testing.T) {
	t.Parallel()
	in := new(brokertest.Inbox)
	b, err := broker.New(broker.Config{Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, logins, in) }()
	c := willing(t, &brokertest.Server{Broker: b}, dev, "{}")
	c.ping()
	stop()
	c.wantClosed()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if all := in.All(); len(all) != 0 {
		t.Errorf("ingest has %v", all)
	}
	if err := b.Publish(t.Context(), topics.Time(), []byte("{}"), 0, true); err == nil {
		t.Error("a stopped broker takes messages")
	}
}

func TestServeWithAnEndedContextLetsGoOfTheAddress(t *testing.T) {
	t.Parallel()
	b, err := broker.New(broker.Config{Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := b.Serve(ctx, logins, nil); err != nil {
		t.Fatal(err)
	}
	again, err := broker.New(broker.Config{Addr: b.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Serve(ctx, logins, nil); err != nil {
		t.Fatal(err)
	}
}

// A takeover closes the old connection, sends its will before the new one is
// up, and the new one always gets its messages.
func TestEveryTakeoverLeavesARoutableClient(t *testing.T) {
	t.Parallel()
	in := new(brokertest.Inbox)
	s := brokertest.Start(t, logins, in)
	ctx, command := testContext(t), topics.Device(dev, protocol.KindCommand)
	old := willing(t, s, dev, "{0}")
	const n = 200
	for i := 1; i <= n; i++ {
		c := willing(t, s, dev, "{"+strconv.Itoa(i)+"}")
		if got := len(in.All()); got != i {
			t.Fatalf("takeover %d: %d wills, want %d", i, got, i)
		}
		old.wantClosed()
		if code := c.suback(command); code != 1 {
			t.Fatalf("takeover %d: SUBACK %#x", i, code)
		}
		if err := s.Publish(ctx, command, []byte("x"), 1, false); err != nil {
			t.Fatal(err)
		}
		if first, _, err := c.next(); err != nil || first>>4 != 3 {
			t.Fatalf("takeover %d: packet %#x, %v", i, first, err)
		}
		old = c
	}
	if s.Connected() != 1 {
		t.Errorf("%d clients", s.Connected())
	}
}

func TestKickClosesTheSocketAndSendsTheWill(t *testing.T) {
	t.Parallel()
	in := new(brokertest.Inbox)
	s := brokertest.Start(t, logins, in)
	a, b := willing(t, s, dev, "{}"), device(t, s, other)
	service := dial(t, s)
	service.connect(hello{id: "orchestrator", username: "service", password: "service"})
	service.suback(topics.Root + "/control/#")

	s.Kick(dev)
	a.wantClosed()
	if _, err := in.Wait(testContext(t), topics.Device(dev, protocol.KindPresence)); err != nil {
		t.Fatal(err)
	}
	s.Kick("nobody")

	service.send(publish(topics.Kick(other), "{}", 1))
	b.wantClosed()
	service.quiet()
	testkit.Eventually(t, 10*time.Second, func() bool { return s.Connected() == 1 })
}

func TestSweepEndsWhatIsNotValidAnyMore(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, new(brokertest.Inbox))
	a, m := device(t, s, dev), dial(t, s)
	m.connect(hello{id: "m", username: "monitor", password: "monitor"})
	e := dial(t, s)
	e.connect(hello{id: nonce, username: "enroll"})
	if n := s.Sweep(func(g broker.Grant) bool { return g.Role == broker.RoleMonitor || g.Epoch > 1 }); n != 1 {
		t.Errorf("%d closed, want the device", n)
	}
	a.wantClosed()
	m.ping()
	e.ping()
}

func TestLoginsWithoutACredentialAreShortAndCannotTouchADevice(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, new(brokertest.Inbox), func(c *broker.Config) {
		c.EnrollTimeout, c.ClockTimeout = 300*time.Millisecond, 300*time.Millisecond
	})
	// Both ids are well-formed device ids.
	a, b := device(t, s, nonce), device(t, s, "clock-abc")
	e, k := dial(t, s), dial(t, s)
	if e.connect(hello{id: nonce, username: "enroll"}) != 0 || k.connect(hello{id: "clock-abc", username: "clock"}) != 0 {
		t.Fatal("refused")
	}
	e.wantClosed()
	k.wantClosed()
	a.ping()
	b.ping()
}

func TestLoginsWithoutACredentialAreLimitedByAddress(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, new(brokertest.Inbox), func(c *broker.Config) { c.EnrollRate, c.EnrollBurst = 0.001, 2 })
	for i, want := range []byte{0, 0, 3} {
		c := dial(t, s)
		if code := c.connect(hello{id: "clock-" + strconv.Itoa(i), username: "clock"}); code != want {
			t.Errorf("login %d: CONNACK %d, want %d", i, code, want)
		}
	}
	device(t, s, dev) // has a credential
}

func TestSocketsBeforeCONNECTAreLimitedByAddress(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, new(brokertest.Inbox), func(c *broker.Config) { c.MaxWaiting = 2 })
	device(t, s, "dev-1") // after CONNECT a socket does not count
	device(t, s, "dev-2")
	waiting := dial(t, s)
	dial(t, s)
	testkit.Eventually(t, 10*time.Second, func() bool {
		c := dial(t, s)
		defer func() { _ = c.Close() }()
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := c.r.ReadByte()
		return err != nil && !strings.Contains(err.Error(), "timeout") // closed at once
	})
	if code := waiting.connect(hello{id: dev, username: dev, password: "device"}); code != 0 {
		t.Errorf("CONNACK %d", code)
	}
	device(t, s, other) // there is room again
}

func TestARestrictedDeviceHeartbeatsAndEverythingElseIsDropped(t *testing.T) {
	t.Parallel()
	in := new(brokertest.Inbox)
	s := brokertest.Start(t, logins, in)
	c := dial(t, s)
	h := hello{id: dev, username: dev, password: "restricted", willTopic: topics.Device(dev, protocol.KindPresence), willPayload: "{}"}
	if code := c.connect(h); code != 0 {
		t.Fatalf("CONNACK %d", code)
	}
	c.send(publish(topics.Device(dev, protocol.KindResult), "{}", 1))
	if first, _, err := c.next(); err != nil || first != 0x40 {
		t.Errorf("packet %#x, %v, want PUBACK", first, err)
	}
	c.send(publish(topics.Device(dev, protocol.KindHeartbeat), "{}", 0))
	c.ping()
	_ = c.Close()
	testkit.Eventually(t, 10*time.Second, func() bool { return s.Connected() == 0 })
	if all := in.All(); len(all) != 1 || all[0].Topic != topics.Device(dev, protocol.KindHeartbeat) {
		t.Errorf("ingest has %v, want the heartbeat", all)
	}
}

func TestAGrantThatExpiresEndsItsConnection(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, brokertest.Logins{
		"soon": {Role: broker.RoleMonitor, ID: "tok", Expires: time.Now().Add(time.Second)},
		"past": {Role: broker.RoleMonitor, ID: "tok", Expires: time.Now().Add(-time.Second)},
	}, new(brokertest.Inbox))
	c := dial(t, s)
	if code := c.connect(hello{id: "x", username: "monitor", password: "past"}); code != 5 {
		t.Errorf("CONNACK %d for an expired token", code)
	}
	c = dial(t, s)
	if code := c.connect(hello{id: "x", username: "monitor", password: "soon"}); code != 0 {
		t.Fatalf("CONNACK %d", code)
	}
	c.wantClosed()
}

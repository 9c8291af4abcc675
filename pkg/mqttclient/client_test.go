package mqttclient_test

import (
	"context"
	"errors"
	"fmt"
	"net"
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

var logins = brokertest.Logins{"device": {Role: broker.RoleDevice}}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// dial connects a device and closes it with the test.
func dial(t *testing.T, s *brokertest.Server, id string, change func(*mqttclient.Options)) *mqttclient.Client {
	t.Helper()
	o := mqttclient.Options{Broker: s.URL, ClientID: id, Username: id, Password: "device"}
	if change != nil {
		change(&o)
	}
	c, err := mqttclient.Dial(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func TestAMessageGoesEachWay(t *testing.T) {
	t.Parallel()
	ctx, in := testContext(t), new(brokertest.Inbox)
	s := brokertest.Start(t, logins, in)
	got := make(chan string, 1)
	c := dial(t, s, "dev-a", func(o *mqttclient.Options) {
		o.OnMessage = func(topic string, payload []byte) { got <- topic + " " + string(payload) }
	})
	command, result := topics.Device("dev-a", protocol.KindCommand), topics.Device("dev-a", protocol.KindResult)
	if err := c.Subscribe(ctx, command, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(ctx, command, []byte("do"), 1, false); err != nil {
		t.Fatal(err)
	}
	if m := <-got; m != command+" do" {
		t.Errorf("received %q", m)
	}
	if err := c.Publish(ctx, result, []byte(`{"done":1}`), 1, false); err != nil {
		t.Fatal(err)
	}
	// The PUBACK came after the ingest had it.
	if all := in.All(); len(all) != 1 || all[0].Topic != result {
		t.Errorf("ingest has %v", all)
	}
}

func TestARefusalNamesTheCONNACKCode(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, new(brokertest.Inbox))
	for name, tc := range map[string]struct {
		o    mqttclient.Options
		code byte
		bad  bool
	}{
		"wrong password":    {mqttclient.Options{ClientID: "dev-a", Username: "dev-a", Password: "guess"}, 5, true},
		"foreign client id": {mqttclient.Options{ClientID: "dev-b", Username: "dev-a", Password: "device"}, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.o.Broker = s.URL
			_, err := mqttclient.Dial(testContext(t), tc.o)
			var refused *mqttclient.Refused
			if !errors.As(err, &refused) || refused.Code != tc.code || refused.BadCredential() != tc.bad {
				t.Errorf("error %v, want CONNACK %d", err, tc.code)
			}
		})
	}
}

func TestAnAuthorizerThatIsAwayIsNoRefusalOfTheCredential(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, away{}, new(brokertest.Inbox))
	_, err := mqttclient.Dial(testContext(t), mqttclient.Options{Broker: s.URL, ClientID: "dev-a", Username: "dev-a", Password: "device"})
	var refused *mqttclient.Refused
	if !errors.As(err, &refused) || refused.Code != 3 || refused.BadCredential() {
		t.Errorf("error %v, want CONNACK 3", err)
	}
}

type away struct{}

func (away) Authorize(context.Context, broker.Login) (broker.Grant, error) {
	return broker.Grant{}, fleet.Errorf(fleet.CodeUnavailable, "the database is away")
}

func TestDialEndsWithItsContext(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, answers nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = mqttclient.Dial(ctx, mqttclient.Options{Broker: "tcp://" + silent.Addr().String(), ClientID: "dev-a", Username: "dev-a"})
	var refused *mqttclient.Refused
	if !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &refused) {
		t.Errorf("error %v, want the context's", err)
	}
}

func TestDialWithoutABrokerIsANetworkError(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	_, err = mqttclient.Dial(testContext(t), mqttclient.Options{Broker: "tcp://" + l.Addr().String(), ClientID: "dev-a"})
	var refused *mqttclient.Refused
	if err == nil || errors.As(err, &refused) {
		t.Errorf("error %v, want one of the network", err)
	}
}

func TestBadBrokerURLsAreRefused(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"", "tcp://", "http://a:1", "a:1883", "mqtt://user:secret@a:1883", "\x7f"} {
		if _, err := mqttclient.Dial(t.Context(), mqttclient.Options{Broker: u}); fleet.ErrorCode(err) != fleet.CodeInvalid {
			t.Errorf("%q: %v", u, err)
		}
	}
}

func TestARefusedSubscriptionIsAnError(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, new(brokertest.Inbox))
	c := dial(t, s, "dev-a", nil)
	for _, filter := range []string{"#", topics.Device("dev-b", protocol.KindCommand), "$share/g/" + topics.Device("dev-a", protocol.KindCommand)} {
		if err := c.Subscribe(testContext(t), filter, 1); !errors.Is(err, mqttclient.ErrRefusedFilter) {
			t.Errorf("%s: %v", filter, err)
		}
	}
	if err := c.Err(); err != nil {
		t.Errorf("the connection ended: %v", err)
	}
}

func TestTheOrderOfMessagesIsKept(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := brokertest.Start(t, logins, new(brokertest.Inbox))
	const n = 100
	got := make(chan string, n)
	c := dial(t, s, "dev-a", func(o *mqttclient.Options) {
		o.OnMessage = func(_ string, payload []byte) { got <- string(payload) }
	})
	command := topics.Device("dev-a", protocol.KindCommand)
	if err := c.Subscribe(ctx, command, 1); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := s.Publish(ctx, command, fmt.Append(nil, i), 1, false); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		if m := <-got; m != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, m)
		}
	}
}

func TestABusyHandlerCostsTheNewestMessagesOnly(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := brokertest.Start(t, logins, new(brokertest.Inbox))
	busy, release := make(chan struct{}, 16), make(chan struct{})
	c := dial(t, s, "dev-a", func(o *mqttclient.Options) {
		o.Queue = 2
		o.OnMessage = func(string, []byte) { busy <- struct{}{}; <-release }
	})
	t.Cleanup(func() { close(release) })
	command := topics.Device("dev-a", protocol.KindCommand)
	if err := c.Subscribe(ctx, command, 1); err != nil {
		t.Fatal(err)
	}
	send := func() {
		t.Helper()
		if err := s.Publish(ctx, command, []byte("x"), 1, false); err != nil {
			t.Fatal(err)
		}
	}
	send()
	<-busy // one is in the handler
	for range 5 {
		send()
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return c.Dropped() >= 3 })
	if c.Dropped() != 3 {
		t.Errorf("dropped %d, want 3", c.Dropped())
	}
}

func TestALostConnectionIsReportedAndOperationsFail(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := brokertest.Start(t, logins, new(brokertest.Inbox))
	c := dial(t, s, "dev-a", nil)
	s.Kick("dev-a")
	select {
	case <-c.Done():
	case <-ctx.Done():
		t.Fatal("the loss was not noticed")
	}
	if err := c.Err(); err == nil || errors.Is(err, mqttclient.ErrClosed) {
		t.Errorf("reason %v", err)
	}
	if err := c.Publish(ctx, topics.Device("dev-a", protocol.KindState), []byte("{}"), 1, false); err == nil {
		t.Error("a publish on a lost connection succeeded")
	}
	if err := c.Subscribe(ctx, topics.Device("dev-a", protocol.KindAck), 1); err == nil {
		t.Error("a subscription on a lost connection succeeded")
	}
}

func TestAWillIsSentWhenTheConnectionBreaksAndNotOnClose(t *testing.T) {
	t.Parallel()
	ctx, in := testContext(t), new(brokertest.Inbox)
	s := brokertest.Start(t, logins, in)
	will := func(id string) func(*mqttclient.Options) {
		return func(o *mqttclient.Options) {
			o.WillTopic, o.WillPayload, o.WillQoS = topics.Device(id, protocol.KindPresence), []byte(`{"online":false,"session":1}`), 1
		}
	}
	polite, broken := dial(t, s, "dev-a", will("dev-a")), dial(t, s, "dev-b", will("dev-b"))
	if err := polite.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(polite.Err(), mqttclient.ErrClosed) {
		t.Errorf("reason %v", polite.Err())
	}
	s.Kick("dev-b")
	<-broken.Done()
	if _, err := in.Wait(ctx, topics.Device("dev-b", protocol.KindPresence)); err != nil {
		t.Fatal(err)
	}
	if all := in.All(); len(all) != 1 {
		t.Errorf("ingest has %v", all)
	}
}

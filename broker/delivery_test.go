package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// message reads the next PUBLISH, acknowledged if it must be.
func (c *raw) message() (topic, payload string, retained bool) {
	c.t.Helper()
	for {
		first, body, err := c.next()
		if err != nil {
			c.t.Fatalf("PUBLISH: %v", err)
		}
		if first>>4 != 3 {
			continue
		}
		n := int(body[0])<<8 | int(body[1])
		topic, body = string(body[2:2+n]), body[2+n:]
		if first&6 != 0 {
			c.send(packet(0x40, body[:2]))
			body = body[2:]
		}
		return topic, string(body), first&1 != 0
	}
}

func monitor(t *testing.T, s *brokertest.Server, id string) *raw {
	t.Helper()
	c := dial(t, s)
	if code := c.connect(hello{id: id, username: "monitor", password: "monitor"}); code != 0 {
		t.Fatalf("CONNACK %d", code)
	}
	return c
}

func TestAMonitorGetsTheLastStateOfEveryDeviceAndThenTheChanges(t *testing.T) {
	t.Parallel()
	ctx, s := testContext(t), brokertest.Start(t, logins, new(brokertest.Inbox))
	pub := func(topic, payload string) {
		t.Helper()
		if err := s.Publish(ctx, topic, []byte(payload), 1, true); err != nil {
			t.Fatal(err)
		}
	}
	const n = 300
	for i := range n {
		pub(topics.FleetDevice(fmt.Sprintf("d%d", i)), "{old}")
		pub(topics.FleetDevice(fmt.Sprintf("d%d", i)), fmt.Sprintf("{%d}", i))
	}
	pub(topics.FleetDevice("gone"), "{}")
	pub(topics.FleetDevice("gone"), "")
	pub(topics.FleetSummary(), "{sum}")

	m := monitor(t, s, "m")
	if code := m.suback(topics.FleetFilter()); code != 1 {
		t.Fatalf("SUBACK %#x", code)
	}
	got := make(map[string]string)
	for len(got) < n+1 {
		topic, payload, retained := m.message()
		if !retained {
			t.Errorf("%s is not marked as retained", topic)
		}
		got[topic] = payload
	}
	if got[topics.FleetSummary()] != "{sum}" || got[topics.FleetDevice("d7")] != "{7}" || got[topics.FleetDevice("gone")] != "" {
		t.Errorf("summary %q, d7 %q, gone %q", got[topics.FleetSummary()], got[topics.FleetDevice("d7")], got[topics.FleetDevice("gone")])
	}
	pub(topics.FleetDevice("d7"), "{new}")
	if topic, payload, retained := m.message(); topic != topics.FleetDevice("d7") || payload != "{new}" || retained {
		t.Errorf("live message %s %s %v", topic, payload, retained)
	}
	one := monitor(t, s, "one")
	one.suback(topics.FleetDevice("d7"))
	if topic, payload, _ := one.message(); topic != topics.FleetDevice("d7") || payload != "{new}" {
		t.Errorf("single device: %s %s", topic, payload)
	}
}

func TestMonitorsWithoutAClientIDDoNotDisturbEachOther(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, new(brokertest.Inbox))
	a, b := monitor(t, s, ""), monitor(t, s, "")
	for _, m := range []*raw{a, b} {
		if code := m.suback(topics.FleetFilter()); code != 1 {
			t.Fatalf("SUBACK %#x", code)
		}
	}
	if err := s.Publish(testContext(t), topics.FleetSummary(), []byte("{}"), 0, false); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*raw{a, b} {
		if topic, _, _ := m.message(); topic != topics.FleetSummary() {
			t.Errorf("a monitor got %s", topic)
		}
	}
}

func TestAMonitorPublishesNothing(t *testing.T) {
	t.Parallel()
	in := new(brokertest.Inbox)
	s := brokertest.Start(t, logins, in)
	d, m := device(t, s, dev), monitor(t, s, "m")
	d.suback(topics.Device(dev, protocol.KindCommand))
	w := monitor(t, s, "w")
	w.suback(topics.FleetFilter())
	for _, topic := range []string{topics.Device(dev, protocol.KindCommand), topics.Device(dev, protocol.KindHeartbeat), topics.FleetSummary(), topics.Kick(dev), topics.Time()} {
		m.send(publish(topic, "{}", 0))
	}
	m.ping()
	d.quiet()
	m.send(publish(topics.FleetSummary(), "{}", 1))
	m.wantClosed()
	if err := s.Publish(testContext(t), topics.FleetSummary(), []byte("{real}"), 0, false); err != nil {
		t.Fatal(err)
	}
	if _, payload, _ := w.message(); payload != "{real}" {
		t.Errorf("a monitor's message was delivered: %s", payload)
	}
	if all := in.All(); len(all) != 0 {
		t.Errorf("ingest has %v", all)
	}
}

func TestASubscriberThatDoesNotReadBlocksNobodyAndIsClosed(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := brokertest.Start(t, logins, new(brokertest.Inbox), func(c *broker.Config) { c.WriteTimeout = 500 * time.Millisecond })
	slow, quick := monitor(t, s, "slow"), device(t, s, dev)
	slow.suback(topics.FleetFilter())
	command := topics.Device(dev, protocol.KindCommand)
	quick.suback(command)

	payload := []byte(kib(64))
	longest := time.Duration(0)
	for i := 0; s.Connected() == 2; i++ {
		began := time.Now()
		for _, topic := range []string{topics.FleetSummary(), command} {
			if err := s.Publish(ctx, topic, payload[:4096<<(4*(1-i%2))], 1, false); err != nil {
				t.Fatal(err)
			}
		}
		longest = max(longest, time.Since(began))
		if topic, _, _ := quick.message(); topic != command {
			t.Fatalf("the quick client got %s", topic)
		}
	}
	if longest > 400*time.Millisecond {
		t.Errorf("a publish took %v", longest)
	}
	t.Logf("longest publish %v", longest)
}

func TestASharedSubscriptionIsDealtOutEvenlyAmongTheLiving(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := brokertest.Start(t, logins, nil) // no ingest: what devices publish is routed
	filter := "$share/kernex/" + topics.Root + "/devices/+/heartbeat"
	members := make([]*raw, 4)
	for i := range members {
		members[i] = dial(t, s)
		members[i].connect(hello{id: fmt.Sprint("o", i), username: "service", password: "service"})
		if code := members[i].suback(filter); code != 1 {
			t.Fatalf("SUBACK %#x", code)
		}
	}
	_ = members[3].Close() // dies without a goodbye
	testkit.Eventually(t, 10*time.Second, func() bool { return s.Connected() == 3 })
	d := device(t, s, dev)
	for i := range 30 {
		d.send(publish(topics.Device(dev, protocol.KindHeartbeat), fmt.Sprint(i), 0))
	}
	d.ping()
	var got []string
	for _, m := range members[:3] {
		for range 10 {
			_, payload, _ := m.message()
			got = append(got, payload)
		}
	}
	slices.Sort(got)
	if n := len(slices.Compact(got)); n != 30 {
		t.Errorf("%d different messages of 30", n)
	}
	if ctx.Err() != nil {
		t.Error(ctx.Err())
	}
}

func TestTheClockReadsTheTime(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, new(brokertest.Inbox))
	if err := s.Publish(testContext(t), topics.Time(), []byte(`{"time":1}`), 0, true); err != nil {
		t.Fatal(err)
	}
	c := dial(t, s)
	c.connect(hello{id: "clock-1", username: "clock"})
	c.suback(topics.Time())
	if _, payload, _ := c.message(); payload != `{"time":1}` {
		t.Errorf("time %s", payload)
	}
}

func TestPublishRefusesWhatNoTopicCanBe(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, new(brokertest.Inbox))
	for _, topic := range []string{"", topics.FleetFilter(), topics.Root + "/+", "$SYS/x"} {
		if err := s.Publish(testContext(t), topic, nil, 0, false); err == nil {
			t.Errorf("%q was published", topic)
		}
	}
	if err := s.Publish(testContext(t), topics.Time(), []byte(strings.Repeat("x", 121<<10)), 0, false); err == nil {
		t.Error("121 KiB were published")
	}
	if err := s.Publish(testContext(t), topics.Time(), nil, 2, false); err == nil {
		t.Error("QoS 2 was published")
	}
}

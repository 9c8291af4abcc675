package broker_test

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dev is the device of these tests, other another one.
const dev, other = "dev-a", "dev-b"

func TestBadLoginsAreRefused(t *testing.T) {
	t.Parallel()
	in := new(brokertest.Inbox)
	s := brokertest.Start(t, logins, in)
	own := topics.Device(dev, protocol.KindPresence)
	cases := map[string]struct {
		hello hello
		code  byte
	}{
		"wrong password":           {hello{id: dev, username: dev, password: "guess"}, 5},
		"no password":              {hello{id: dev, username: dev}, 5},
		"foreign client id":        {hello{id: other, username: dev, password: "device"}, 2},
		"empty client id":          {hello{username: dev, password: "device"}, 2},
		"client id inline":         {hello{id: "inline", username: dev, password: "device"}, 2},
		"service as inline":        {hello{id: "inline", username: "service", password: "service"}, 2},
		"client id #":              {hello{id: "#", username: "#", password: "device"}, 2},
		"client id a/b":            {hello{id: "a/b", username: "a/b", password: "device"}, 2},
		"monitor with #":           {hello{id: "x#", username: "monitor", password: "monitor"}, 2},
		"service empty":            {hello{username: "service", password: "service"}, 2},
		"device as monitor":        {hello{id: "x", username: "monitor", password: "device"}, 5},
		"monitor as service":       {hello{id: "x", username: "service", password: "monitor"}, 5},
		"monitor as device":        {hello{id: dev, username: dev, password: "monitor"}, 5},
		"enroll without nonce":     {hello{id: dev, username: "enroll"}, 2},
		"clock under another name": {hello{id: dev, username: "clock"}, 2},
		"foreign will":             {hello{id: dev, username: dev, password: "device", willTopic: topics.Device(other, protocol.KindCommand), willPayload: "{}"}, 5},
		"foreign presence will":    {hello{id: dev, username: dev, password: "device", willTopic: topics.Device(other, protocol.KindPresence), willPayload: "{}"}, 5},
		"will on own state":        {hello{id: dev, username: dev, password: "device", willTopic: topics.Device(dev, protocol.KindState), willPayload: "{}"}, 5},
		"retained will":            {hello{id: dev, username: dev, password: "device", willTopic: own, willPayload: "{}", willRetain: true}, 5},
		"will above 1 KiB":         {hello{id: dev, username: dev, password: "device", willTopic: own, willPayload: kib(2)}, 5},
		"monitor with a will":      {hello{id: "x", username: "monitor", password: "monitor", willTopic: topics.FleetSummary(), willPayload: "{}"}, 5},
		"enroll with a will":       {hello{id: nonce, username: "enroll", willTopic: topics.EnrollRequest(nonce), willPayload: "{}"}, 5},
	}
	t.Run("each", func(t *testing.T) {
		for name, tc := range cases {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				c := dial(t, s)
				if code := c.connect(tc.hello); code != tc.code {
					t.Errorf("CONNACK %d, want %d", code, tc.code)
				}
				c.wantClosed()
			})
		}
	})
	if got := in.All(); len(got) != 0 {
		t.Errorf("ingest received %v", got)
	}
}

func TestBadPacketsCloseTheConnectionAndReachNobody(t *testing.T) {
	t.Parallel()
	in := new(brokertest.Inbox)
	s := brokertest.Start(t, logins, in, func(c *broker.Config) { c.ConnectTimeout = 300 * time.Millisecond })
	beat := topics.Device(dev, protocol.KindHeartbeat)
	login := func(id string) []byte { return hello{id: id, username: id, password: "device"}.packet() }
	login5 := func(id string) []byte {
		return hello{version: 5, id: id, username: id, password: "device"}.packet()
	}
	retain := publish(beat, "{}", 0)
	retain[0] |= 1
	cases := map[string][][]byte{
		"remaining length 256 MiB before CONNECT": {{0x10, 0xff, 0xff, 0xff, 0x7f}},
		"remaining length 256 MiB after CONNECT":  {login("p-big"), {0x30, 0xff, 0xff, 0xff, 0x7f}},
		"remaining length of five bytes":          {{0x10, 0xff, 0xff, 0xff, 0xff, 0x7f}},
		"first packet PUBLISH":                    {publish(beat, "{}", 0)},
		"first packet nonsense":                   {[]byte("GET / HTTP/1.1\r\n\r\n")},
		"silence":                                 {},
		"half a CONNECT":                          {login("p-half")[:10]},
		"second CONNECT":                          {login("p-twice"), login("p-twice")},
		"foreign topic at QoS 1":                  {login("p-foreign"), publish(topics.Device(other, protocol.KindResult), "{}", 1)},
		"command at QoS 1":                        {login("p-command"), publish(topics.Device("p-command", protocol.KindCommand), "{}", 1)},
		"NUL in a topic":                          {login("p-nul"), publish(topics.Device("p-nul", protocol.KindHeartbeat)+"\x00", "{}", 0)},
		"bad UTF-8 in a topic":                    {login("p-utf"), publish("kernex/v1/\xff\xfe", "{}", 0)},
		"NUL in a filter":                         {login("p-fnul"), subscribe("kernex/\x00")},
		"wildcard in a topic":                     {login("p-wild"), publish("kernex/v1/devices/#", "{}", 0)},
		"topic alias":                             {login5("p-alias"), packet(0x30, str(topics.Device("p-alias", protocol.KindHeartbeat)), []byte{3, 0x23, 0, 1}, []byte("{}"))},
		"alias alone":                             {login5("p-alias2"), packet(0x30, str(""), []byte{3, 0x23, 0, 1}, []byte("{}"))},
		"retain":                                  {login(dev), retain},
		"QoS 2":                                   {login("p-qos"), publish(topics.Device("p-qos", protocol.KindHeartbeat), "{}", 2)},
		"QoS 3":                                   {login("p-qos3"), publish(topics.Device("p-qos3", protocol.KindHeartbeat), "{}", 3)},
		"heartbeat above 4 KiB":                   {login("p-cap"), publish(topics.Device("p-cap", protocol.KindHeartbeat), kib(5), 0)},
		"result above 16 KiB":                     {login("p-res"), publish(topics.Device("p-res", protocol.KindResult), kib(17), 1)},
		"packet above 128 KiB":                    {login("p-pkt"), packet(0x30, str(topics.Device("p-pkt", protocol.KindLog)))[:1], {0x81, 0x80, 0x08}},
		"SUBSCRIBE without options":               {login5("p-sub"), packet(0x82, []byte{0, 9, 0}, str("kernex/v1/time"))},
	}
	t.Run("each", func(t *testing.T) {
		for name, sent := range cases {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				c := dial(t, s)
				for _, b := range sent {
					c.send(b)
				}
				c.wantClosed()
			})
		}
	})
	testkit.Eventually(t, 10*time.Second, func() bool { return s.Connected() == 0 })
	if got := in.All(); len(got) != 0 {
		t.Errorf("ingest received %v", got)
	}
}

func TestAForeignTopicAtQoS0IsDroppedAndTheConnectionGoesOn(t *testing.T) {
	t.Parallel()
	in := new(brokertest.Inbox)
	s := brokertest.Start(t, logins, in)
	c := device(t, s, dev)
	for _, topic := range []string{
		topics.Device(other, protocol.KindHeartbeat), topics.Device(dev, protocol.KindAck), topics.FleetSummary(),
		topics.EnrollRequest(nonce), topics.Kick(other), topics.Time(), "$SYS/broker/version", "elsewhere", strings.ToUpper(topics.Device(dev, protocol.KindState)),
	} {
		c.send(publish(topic, "{}", 0))
	}
	c.ping()
	if got := in.All(); len(got) != 0 {
		t.Errorf("ingest received %v", got)
	}
}

func TestForeignFiltersAreRefusedInSUBACK(t *testing.T) {
	t.Parallel()
	s := brokertest.Start(t, logins, new(brokertest.Inbox))
	d := device(t, s, dev)
	m := dial(t, s)
	m.connect(hello{id: "x", username: "monitor", password: "monitor"})
	e := dial(t, s)
	e.connect(hello{id: nonce, username: "enroll"})
	k := dial(t, s)
	k.connect(hello{id: "clock-abc", username: "clock"})
	r := dial(t, s)
	r.connect(hello{id: "dev-r", username: "dev-r", password: "restricted"})
	for _, tc := range []struct {
		c      *raw
		filter string
		ok     bool
	}{
		{d, topics.Device(dev, protocol.KindCommand), true},
		{d, topics.Device(dev, protocol.KindAck), true},
		{d, topics.Device(other, protocol.KindCommand), false},
		{d, topics.Device("+", protocol.KindCommand), false},
		{d, topics.Root + "/devices/" + dev + "/+", false},
		{d, topics.Root + "/devices/" + dev + "/#", false},
		{d, "#", false}, {d, "+/#", false}, {d, "$SYS/#", false},
		{d, "$share/g/#", false}, {d, "$ShArE/g/#", false}, {d, "$SHARE/g/" + topics.Device(dev, protocol.KindCommand), false},
		{d, topics.FleetFilter(), false}, {d, topics.Time(), false},
		{m, topics.FleetFilter(), true}, {m, topics.Root + "/fleet/devices/+", true}, {m, topics.FleetSummary(), true},
		{m, "#", false}, {m, topics.Root + "/#", false}, {m, topics.Root + "/+/summary", false}, {m, "$share/g/" + topics.FleetFilter(), false},
		{m, topics.Device(dev, protocol.KindHeartbeat), false}, {m, topics.Root + "/fleetx/#", false},
		{e, topics.EnrollReply(nonce), true}, {e, topics.EnrollReply(strings.Repeat("0", 32)), false}, {e, topics.Root + "/enroll/+/reply", false}, {e, topics.Time(), false},
		{k, topics.Time(), true}, {k, topics.EnrollReply(nonce), false}, {k, topics.Root + "/+", false},
		{r, topics.Device("dev-r", protocol.KindAck), true}, {r, topics.Device("dev-r", protocol.KindCommand), false},
	} {
		if got := tc.c.suback(tc.filter); (got < 0x80) != tc.ok {
			t.Errorf("%s: SUBACK %#x, want allowed %v", tc.filter, got, tc.ok)
		}
	}
}

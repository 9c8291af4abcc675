package attack

import (
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// What an MQTT 5 client is told when its connection is closed. A packet that
// cannot be read gets no answer.
const (
	violation    = 0x82
	aliasInvalid = 0x94
	tooLarge     = 0x95
	noRetain     = 0x9a
	noQoS        = 0x9b
	notTold      = 0
)

// packets are what a client sends before or after a good login, that ends its
// connection.
func (x *target) packets(*testing.T) []attack {
	type sent = func(d *device) [][]byte
	one := func(b ...byte) sent { return func(*device) [][]byte { return [][]byte{b} } }
	on := func(k protocol.Kind, payload string, qos byte) sent {
		return func(d *device) [][]byte { return [][]byte{publish5(topics.Device(d.id, k), payload, qos)} }
	}
	topic := func(topic string, qos byte) sent {
		return func(*device) [][]byte { return [][]byte{publish5(topic, "{}", qos)} }
	}
	retained := func(d *device) [][]byte {
		p := publish5(topics.Device(d.id, protocol.KindHeartbeat), "{}", 0)
		p[0] |= 1
		return [][]byte{p}
	}
	alias := func(topic string) sent {
		return func(d *device) [][]byte {
			if topic == "own" {
				topic = topics.Device(d.id, protocol.KindHeartbeat)
			}
			return [][]byte{packet(0x30, str(topic), []byte{3, 0x23, 0, 1}, []byte("{}"))}
		}
	}
	var list []attack
	for name, c := range map[string]struct {
		login   bool
		sent    sent
		reason  byte
		counted string
	}{
		"remaining length of 256 MiB before CONNECT": {false, one(0x10, 0xff, 0xff, 0xff, 0x7f), notTold, "packet_too_large"},
		"remaining length of five bytes":             {false, one(0x10, 0xff, 0xff, 0xff, 0xff, 0x7f), notTold, "malformed"},
		"PUBLISH before CONNECT":                     {false, one(publish(topics.Device(x.victim.id, protocol.KindCommand), "{}", 0)...), notTold, "not_connect"},
		"SUBSCRIBE before CONNECT":                   {false, one(packet(0x82, []byte{0, 9}, str("#"), []byte{0})...), notTold, "not_connect"},
		"HTTP to the MQTT port":                      {false, one([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")...), notTold, "malformed"},
		"a TLS hello to the plain port":              {false, one(0x16, 0x03, 0x01, 0x02, 0, 0x01, 0, 0x01, 0xfc), notTold, "malformed"},
		"CONNECT of another protocol":                {false, one(packet(0x10, str("MQTX"), []byte{4, 2, 0, 0}, str("x"))...), notTold, "malformed"},
		"CONNECT of version 9":                       {false, one(packet(0x10, str("MQTT"), []byte{9, 2, 0, 0}, str("x"))...), notTold, ""},
		"CONNECT with reserved flags":                {false, one(packet(0x10, str("MQTT"), []byte{4, 3, 0, 0}, str("x"))...), notTold, "malformed"},
		"CONNECT cut short":                          {false, one(packet(0x10, str("MQTT"), []byte{4, 0xc2, 0, 0}, []byte{0, 50, 'x'})...), notTold, "malformed"},
		"half a CONNECT, then silence":               {false, one(hello{id: x.victim.id, username: x.victim.id}.packet()[:10]...), notTold, "no_connect"},
		"silence":                                    {false, func(*device) [][]byte { return nil }, notTold, "no_connect"},
		"remaining length of 256 MiB":                {true, one(0x30, 0xff, 0xff, 0xff, 0x7f), notTold, "packet_too_large"},
		"a packet above 128 KiB":                     {true, one(0x30, 0x81, 0x80, 0x08), notTold, "packet_too_large"},
		"a second CONNECT":                           {true, func(d *device) [][]byte { return [][]byte{hello{version: 5, id: d.id, username: d.id}.packet()} }, violation, "malformed"},
		"NUL in a topic":                             {true, topic("kernex/v1/\x00", 0), notTold, "malformed"},
		"bad UTF-8 in a topic":                       {true, topic("kernex/v1/\xff\xfe", 0), notTold, "malformed"},
		"# in a topic":                               {true, topic("kernex/v1/devices/#", 0), violation, "malformed"},
		"NUL in a filter":                            {true, one(packet(0x82, []byte{0, 9, 0}, str("kernex/\x00"), []byte{0})...), notTold, "malformed"},
		"SUBSCRIBE without a filter":                 {true, one(packet(0x82, []byte{0, 9, 0})...), violation, "malformed"},
		"a topic alias":                              {true, alias("own"), aliasInvalid, "topic_alias"},
		"a topic alias without a topic":              {true, alias(""), aliasInvalid, "topic_alias"},
		"a retained message":                         {true, retained, noRetain, "retain"},
		"QoS 2":                                      {true, on(protocol.KindHeartbeat, "{}", 2), noQoS, "qos2"},
		"QoS 3":                                      {true, on(protocol.KindHeartbeat, "{}", 3), notTold, "malformed"},
		"a heartbeat above 4 KiB":                    {true, on(protocol.KindHeartbeat, padded(5<<10), 0), tooLarge, "payload_too_large"},
		"a state above 32 KiB":                       {true, on(protocol.KindState, padded(33<<10), 1), tooLarge, "payload_too_large"},
		"a result above 16 KiB":                      {true, on(protocol.KindResult, padded(17<<10), 1), tooLarge, "payload_too_large"},
		"a presence above 1 KiB":                     {true, on(protocol.KindPresence, padded(2<<10), 1), tooLarge, "payload_too_large"},
		"a log above 64 KiB":                         {true, on(protocol.KindLog, padded(65<<10), 1), tooLarge, "payload_too_large"},
	} {
		list = append(list, attack{name: name, run: func(t *testing.T) {
			line := x.dial(t)
			d := x.mallory
			if c.login {
				d = x.guest(t)
				if code := line.connect(hello{version: 5, id: d.id, username: d.id, password: x.token(t, d)}); code != 0 {
					t.Fatalf("CONNACK %d", code)
				}
			}
			for _, b := range c.sent(d) {
				line.send(b)
			}
			if got := line.closed(); got != c.reason {
				t.Errorf("closed with reason %#x, want %#x", got, c.reason)
			}
		}, counted: []string{c.counted}}) // "" by mochi itself
	}
	return list
}

// publish5 is publish for MQTT 5, which has properties.
func publish5(topic, payload string, qos byte) []byte {
	body := str(topic)
	if qos > 0 {
		body = append(body, 0, 7)
	}
	return packet(0x30|qos<<1, body, []byte{0}, []byte(payload))
}

// guest is one of the devices that were there before the attack; no two
// attacks that run at once share one.
func (x *target) guest(t *testing.T) *device {
	t.Helper()
	select {
	case d := <-x.guests:
		t.Cleanup(func() { x.guests <- d })
		return d
	case <-t.Context().Done():
		t.Fatal("no guest")
		return nil
	}
}

// invite registers the guests.
func (x *target) invite(t *testing.T, n int) {
	t.Helper()
	x.guests = make(chan *device, n)
	for range n {
		x.guests <- x.register(t, "", fleet.Labels{"guest": "yes"})
	}
}

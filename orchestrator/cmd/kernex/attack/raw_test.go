package attack

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/protocol"
)

// raw is an MQTT client that sends what the test tells it to, right or wrong.
type raw struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func (s *system) dial(t testing.TB) *raw {
	t.Helper()
	c, err := net.Dial("tcp", s.mqtt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(40 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &raw{t: t, Conn: c, r: bufio.NewReader(c)}
}

func str(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

// packet frames a body.
func packet(first byte, body ...[]byte) []byte {
	var all []byte
	for _, b := range body {
		all = append(all, b...)
	}
	return append(binary.AppendUvarint([]byte{first}, uint64(len(all))), all...) // MQTT's variable byte integer is the same code
}

// hello is a CONNECT packet in pieces; version 0 is MQTT 3.1.1.
type hello struct {
	version                byte
	id, username, password string
	willTopic, will        string
	willFlags              byte // 1 << 5 is retain; QoS 1 unless it flips that
}

func (h hello) packet() []byte {
	flags := byte(0x02 | 0x80)
	if h.password != "" {
		flags |= 0x40
	}
	if h.willTopic != "" {
		flags |= 0x04 | (1<<3 ^ h.willFlags)
	}
	v, properties := byte(4), []byte(nil)
	if h.version == 5 {
		v, properties = 5, []byte{0}
	}
	parts := [][]byte{str("MQTT"), {v, flags, 0, 0}, properties, str(h.id)}
	if h.willTopic != "" {
		parts = append(parts, properties, str(h.willTopic), str(h.will))
	}
	parts = append(parts, str(h.username))
	if h.password != "" {
		parts = append(parts, str(h.password))
	}
	return packet(0x10, parts...)
}

func (c *raw) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// next reads one packet.
func (c *raw) next() (first byte, body []byte, err error) {
	if first, err = c.r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(c.r)
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(c.r, body)
	return first, body, err
}

// connect logs in and returns the CONNACK's code.
func (c *raw) connect(h hello) byte {
	c.t.Helper()
	c.send(h.packet())
	first, body, err := c.next()
	if err != nil || first != 0x20 || len(body) < 2 {
		c.t.Fatalf("CONNACK: packet %#x %x, %v", first, body, err)
	}
	return body[1]
}

// login connects a client that must get in.
func (s *system) login(t testing.TB, h hello) *raw {
	t.Helper()
	c := s.dial(t)
	if code := c.connect(h); code != 0 {
		t.Fatalf("CONNACK %d for %s", code, h.username)
	}
	return c
}

func publish(topic, payload string, qos byte) []byte {
	body := str(topic)
	if qos > 0 {
		body = append(body, 0, 7)
	}
	return packet(0x30|qos<<1, body, []byte(payload))
}

func (c *raw) publish(topic string, v any, qos byte) {
	c.t.Helper()
	text, ok := v.(string)
	if !ok {
		b, err := json.Marshal(v)
		if err != nil {
			c.t.Fatal(err)
		}
		text = string(b)
	}
	c.send(publish(topic, text, qos))
}

// subscribe returns the SUBACK's code.
func (c *raw) subscribe(filter string) byte {
	c.t.Helper()
	c.send(packet(0x82, []byte{0, 9}, str(filter), []byte{1}))
	for {
		first, body, err := c.next()
		if err != nil {
			c.t.Fatalf("SUBACK: %v", err)
		}
		if first == 0x90 {
			return body[2]
		}
	}
}

// message waits for a delivery on topic that fits.
func (c *raw) message(topic string, fits func(payload []byte) bool) []byte {
	c.t.Helper()
	for {
		first, body, err := c.next()
		if err != nil {
			c.t.Fatalf("no message on %s: %v", topic, err)
		}
		if first>>4 != 3 || len(body) < 2 {
			continue
		}
		n := int(binary.BigEndian.Uint16(body))
		got, rest := string(body[2:2+n]), body[2+n:]
		if first&0x06 != 0 {
			c.send(packet(0x40, rest[:2]))
			rest = rest[2:]
		}
		if got == topic && fits(rest) {
			return rest
		}
	}
}

// ack waits for the acknowledgement of a command's result.
func (c *raw) ack(id, command string) (ack protocol.ResultAck) {
	c.t.Helper()
	c.message(topics.Device(id, protocol.KindAck), func(payload []byte) bool {
		var a protocol.Ack
		if err := json.Unmarshal(payload, &a); err != nil {
			c.t.Fatalf("ack %s: %v", payload, err)
		}
		for _, r := range a.Results {
			if r.Command == command {
				ack = r
				return true
			}
		}
		return false
	})
	return ack
}

// closed waits until the broker has closed the connection and returns the
// reason that an MQTT 5 client is told; 0 is none.
func (c *raw) closed() (reason byte) {
	c.t.Helper()
	for {
		first, body, err := c.next()
		var timeout net.Error
		switch {
		case err == nil && first == 0xe0 && len(body) > 0:
			reason = body[0]
		case err == nil:
		case errors.As(err, &timeout) && timeout.Timeout():
			c.t.Fatal("the broker left the connection open")
		default:
			return reason
		}
	}
}

// ping makes sure that everything sent before has been handled, and that no
// message was delivered.
func (c *raw) ping() {
	c.t.Helper()
	c.send([]byte{0xc0, 0})
	for {
		first, body, err := c.next()
		switch {
		case err != nil:
			c.t.Fatalf("PINGRESP: %v", err)
		case first>>4 == 3:
			c.t.Fatalf("delivered: %q", body)
		case first == 0xd0:
			return
		}
	}
}

// padded is a JSON object of n bytes.
func padded(n int) string { return "{" + strings.Repeat(" ", n-2) + "}" }

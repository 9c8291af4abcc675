package broker_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// topics are the topics under test.
var topics = protocol.NewTopics("")

const nonce = "0123456789abcdef0123456789abcdef"

// logins are the credentials of these tests.
var logins = brokertest.Logins{
	"device":     {Role: broker.RoleDevice, Epoch: 1},
	"restricted": {Role: broker.RoleDevice, Restricted: true},
	"monitor":    {Role: broker.RoleMonitor, ID: "tok-m"},
	"service":    {Role: broker.RoleService, ID: "tok-s"},
}

// raw is an MQTT client that sends what the test tells it to, right or wrong.
type raw struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, s *brokertest.Server) *raw {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
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
	out := []byte{first}
	for n := len(all); ; {
		d := byte(n % 128)
		if n /= 128; n > 0 {
			out = append(out, d|128)
			continue
		}
		out = append(out, d)
		break
	}
	return append(out, all...)
}

// hello is a CONNECT packet in pieces.
type hello struct {
	version                byte // 0: 4
	id, username, password string
	keepalive              uint16
	willTopic, willPayload string
	willRetain             bool
}

func (h hello) packet() []byte {
	flags := byte(0x02 | 0x80)
	if h.password != "" {
		flags |= 0x40
	}
	if h.willTopic != "" {
		flags |= 0x04 | 1<<3
		if h.willRetain {
			flags |= 1 << 5
		}
	}
	v := h.version
	if v == 0 {
		v = 4
	}
	body := append(str("MQTT"), v, flags)
	body = binary.BigEndian.AppendUint16(body, h.keepalive)
	if v == 5 {
		body = append(body, 0)
	}
	body = append(body, str(h.id)...)
	if h.willTopic != "" {
		if v == 5 {
			body = append(body, 0)
		}
		body = append(append(body, str(h.willTopic)...), str(h.willPayload)...)
	}
	body = append(body, str(h.username)...)
	if h.password != "" {
		body = append(body, str(h.password)...)
	}
	return packet(0x10, body)
}

func (c *raw) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// next reads one packet.
func (c *raw) next() (first byte, body []byte, err error) {
	first, err = c.r.ReadByte()
	if err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(c.r) // MQTT's variable byte integer is the same code
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

// device logs a device in.
func device(t testing.TB, s *brokertest.Server, id string) *raw {
	t.Helper()
	c := dial(t, s)
	if code := c.connect(hello{id: id, username: id, password: "device"}); code != 0 {
		t.Fatalf("CONNACK %d", code)
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

func subscribe(filter string) []byte { return packet(0x82, []byte{0, 9}, str(filter), []byte{1}) }

// suback subscribes and returns the SUBACK's code.
func (c *raw) suback(filter string) byte {
	c.t.Helper()
	c.send(subscribe(filter))
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

// wantClosed waits until the broker has closed the connection.
func (c *raw) wantClosed() {
	c.t.Helper()
	for {
		_, _, err := c.next()
		var timeout net.Error
		switch {
		case err == nil: // a goodbye first is fine
		case errors.As(err, &timeout) && timeout.Timeout():
			c.t.Fatal("the broker left the connection open")
		default:
			return
		}
	}
}

// ping makes sure that everything sent before has been handled.
func (c *raw) ping() {
	c.t.Helper()
	c.send([]byte{0xc0, 0})
	for {
		first, _, err := c.next()
		if err != nil {
			c.t.Fatalf("PINGRESP: %v", err)
		}
		if first == 0xd0 {
			return
		}
	}
}

// quiet makes sure that the broker has handled everything sent before and has
// delivered no message.
func (c *raw) quiet() {
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

func kib(n int) string { return "{" + strings.Repeat(" ", n<<10-2) + "}" }

package broker_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// counting is an Ingest that only counts.
type counting struct{ n atomic.Int64 }

func (c *counting) Receive(string, []byte) { c.n.Add(1) }

// bareHook is mochi's fastest way to take messages out, without any check.
type bareHook struct {
	mqtt.HookBase
	in *counting
}

func (h *bareHook) Provides(b byte) bool { return b == mqtt.OnPublish }

func (h *bareHook) OnPublish(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	h.in.Receive(pk.TopicName, pk.Payload)
	return pk, packets.CodeSuccessIgnore
}

// BenchmarkHeartbeats sends heartbeats of 120 bytes over one connection, in
// writes of 64, through this broker and through bare mochi with mochi's own
// listener and an allow-all hook. The difference is the price of the checks.
func BenchmarkHeartbeats(b *testing.B) {
	b.Run("bare mochi", func(b *testing.B) {
		in := new(counting)
		log := slog.New(slog.NewTextHandler(io.Discard, nil))
		s := mqtt.New(&mqtt.Options{Logger: log})
		tcp := listeners.NewTCP(listeners.Config{ID: "t", Address: "127.0.0.1:0"})
		for _, err := range []error{s.AddHook(new(auth.AllowHook), nil), s.AddHook(&bareHook{in: in}, nil), s.AddListener(tcp), s.Serve()} {
			if err != nil {
				b.Fatal(err)
			}
		}
		b.Cleanup(func() { _ = s.Close() })
		heartbeats(b, tcp.Address(), in)
	})
	b.Run("kernex", func(b *testing.B) {
		in := new(counting)
		s := brokertest.Start(b, logins, in)
		heartbeats(b, s.Addr().String(), in)
	})
}

func heartbeats(b *testing.B, addr string, in *counting) {
	b.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write((hello{id: dev, username: dev, password: "device", keepalive: 60}).packet()); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		b.Fatal(err)
	}
	const batch = 64
	one := publish(topics.Device(dev, protocol.KindHeartbeat), kib(1)[:120], 0)
	var all []byte
	for range batch {
		all = append(all, one...)
	}
	b.ReportAllocs()
	for sent := 0; sent < b.N; sent += batch {
		n := min(batch, b.N-sent)
		if _, err := conn.Write(all[:n*len(one)]); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := conn.Write([]byte{0xc0, 0}); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil { // everything is handled
		b.Fatal(err)
	}
	if got := in.n.Load(); got < int64(b.N) {
		b.Fatalf("received %d of %d", got, b.N)
	}
}

// BenchmarkAllow asks the table what it is asked for every heartbeat, and what
// it takes longest for.
func BenchmarkAllow(b *testing.B) {
	g := broker.Grant{Role: broker.RoleDevice, ID: dev}
	for name, topic := range map[string]string{"heartbeat": topics.Device(dev, protocol.KindHeartbeat), "denied": topics.Device(other, protocol.KindPresence)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				broker.Allow(topics, g, topic, true)
			}
		})
	}
}

// BenchmarkPublish publishes a command in process to one device that reads.
func BenchmarkPublish(b *testing.B) {
	s := brokertest.Start(b, logins, new(counting))
	d := device(b, s, dev)
	command := topics.Device(dev, protocol.KindCommand)
	d.suback(command)
	payload := []byte(kib(1))
	_ = d.SetDeadline(time.Time{})
	b.ReportAllocs()
	for range b.N {
		if err := s.Publish(context.Background(), command, payload, 0, false); err != nil {
			b.Fatal(err)
		}
		if _, _, err := d.next(); err != nil {
			b.Fatal(err)
		}
	}
}

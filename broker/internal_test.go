package broker

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/protocol"
)

// connectPacket logs device "dev-a" in with the password "sesame-sesame".
var connectPacket = []byte("\x10\x27\x00\x04MQTT\x04\xc2\x00\x3c\x00\x05dev-a\x00\x05dev-a\x00\x0dsesame-sesame")

type anyone struct{}

func (anyone) Authorize(_ context.Context, l Login) (Grant, error) {
	return Grant{Role: RoleDevice, ID: l.Username}, nil
}

type discard struct{}

func (discard) Receive(string, []byte) {}

// serve runs b until the test ends.
func serve(t *testing.T, b *Broker) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, anyone{}, discard{}) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// login sends CONNECT and wants CONNACK 0.
func login(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	answer := make([]byte, 4)
	if _, err := c.Write(connectPacket); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(answer); err != nil || answer[0] != 0x20 || answer[3] != 0 {
		t.Fatalf("CONNACK %x, %v", answer, err)
	}
}

// refusals reads the counter of refusals for one reason.
func refusals(t *testing.T, reg prometheus.Gatherer, reason string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "kernex_broker_refused_total" && m.GetLabel()[0].GetValue() == reason {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// exhausted is a listener that runs out of descriptors first.
type exhausted struct {
	net.Listener
	left int
}

func (e *exhausted) Accept() (net.Conn, error) {
	if e.left > 0 {
		e.left--
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return e.Listener.Accept()
}

func TestAcceptingGoesOnWhenThereAreDescriptorsAgain(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	b, err := New(Config{Addr: "127.0.0.1:0", Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	b.listener.ins[0].Listener = &exhausted{Listener: b.listener.ins[0].Listener, left: 3}
	serve(t, b)
	c, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	login(t, c)
	if n := refusals(t, reg, reasonAccept); n != 3 {
		t.Errorf("%v accept errors counted", n)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func TestNoLogLineHoldsAPasswordOrAPayload(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	b, err := New(Config{Addr: "127.0.0.1:0", Logger: zerolog.New(&out)})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, b)
	c, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	login(t, c)
	if _, err := c.Write(append([]byte{0x35, 20, 0, 1, 'x', 0, 1}, "secret-payload-"...)); err != nil { // QoS 2, retained
		t.Fatal(err)
	}
	if _, err := c.Write(connectPacket); err == nil {
		_, _ = c.Read(make([]byte, 16)) // until it is closed
	}
	got := out.String()
	if strings.Contains(got, "sesame") || strings.Contains(got, "secret-payload") || strings.Contains(got, "c2VzYW1l") {
		t.Errorf("logged: %s", got)
	}
	if !strings.Contains(got, `"part":"mochi"`) || !strings.Contains(got, `"reason":"qos2"`) {
		t.Errorf("not logged: %s", got)
	}
}

func TestAPanicWhileDecodingEndsOneConnectionOnly(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	b, err := New(Config{Addr: "127.0.0.1:0", Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, b)
	c, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	v5 := []byte("\x10\x28\x00\x04MQTT\x05\xc2\x00\x3c\x00\x00\x05dev-a\x00\x05dev-a\x00\x0dsesame-sesame")
	// A filter without its options byte: mochi's decoder reads past the end.
	if _, err := c.Write(append(v5, 0x82, 6, 0, 9, 0, 0, 1, 'a')); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	for buf := make([]byte, 64); err == nil; {
		_, err = c.Read(buf)
	}
	again, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	login(t, again)
	if n := refusals(t, reg, reasonPanic); n != 1 {
		t.Errorf("%v panics counted", n)
	}
	if n := len(b.server.Clients.GetAll()); n != 2 { // dev-a and inline
		t.Errorf("mochi knows %d clients", n)
	}
}

func TestTLSIsServedFrom12On(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{Addr: "127.0.0.1:0", TLS: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, ConnectTimeout: time.Second}) //nolint:gosec // the broker sets the version
	if err != nil {
		t.Fatal(err)
	}
	serve(t, b)
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	c, err := tls.Dial("tcp", b.Addr().String(), &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	login(t, c)
	if _, err := tls.Dial("tcp", b.Addr().String(), &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS11}); err == nil { //nolint:gosec // the version is what is tested
		t.Error("TLS 1.1 was accepted")
	}
	plain, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	_ = plain.SetDeadline(time.Now().Add(20 * time.Second))
	if n, err := plain.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("a silent socket stays: %d, %v", n, err)
	}
}

// A filter is allowed only if every topic that it matches is.
func TestAllowedFiltersMatchOnlyAllowedTopics(t *testing.T) {
	t.Parallel()
	topics := protocol.NewTopics("k/v1")
	level := rapid.SampledFrom([]string{"k", "v1", "devices", "enroll", "fleet", "time", "control", "a", "b", "command", "heartbeat", "ack", "reply", "+", "#", "$share", "", "{id}"})
	grant := rapid.Custom(func(t *rapid.T) Grant {
		return Grant{
			Role:       rapid.SampledFrom([]Role{RoleDevice, RoleEnroll, RoleClock, RoleService, RoleMonitor, "other"}).Draw(t, "role"),
			ID:         rapid.SampledFrom([]string{"a", "b"}).Draw(t, "id"),
			Restricted: rapid.Bool().Draw(t, "restricted"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		g := grant.Draw(t, "grant")
		filter := "k/v1/" + strings.Join(rapid.SliceOfN(level, 1, 4).Draw(t, "filter"), "/")
		if i := strings.Index(filter, "#"); i >= 0 {
			filter = filter[:i+1] // elsewhere it is no filter
		}
		// A topic that the filter matches.
		topic := strings.Split(filter, "/")
		for i, l := range topic {
			switch l {
			case "+":
				topic[i] = rapid.SampledFrom([]string{"a", "b", "devices", "command"}).Draw(t, "level")
			case "#":
				topic[i] = strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "command", "reply"}), 1, 3).Draw(t, "rest"), "/")
			}
		}
		name := strings.Join(topic, "/")
		if Allow(topics, g, filter, false) && !Allow(topics, g, name, false) {
			t.Fatalf("%+v may subscribe to %s, but not read %s", g, filter, name)
		}
		if g.Role == RoleDevice && Allow(topics, g, filter, false) && strings.ContainsAny(filter, "+#") {
			t.Fatalf("a device may use the wildcard filter %s", filter)
		}
		restricted := g
		restricted.Restricted = true
		for _, write := range []bool{false, true} {
			if g.Role == RoleDevice && Allow(topics, restricted, name, write) && !Allow(topics, Grant{Role: g.Role, ID: g.ID}, name, write) {
				t.Fatalf("a restricted device may more: %s", name)
			}
		}
	})
}

// Whatever a logged-in device sends, nothing of it reaches another's topics and
// the broker goes on.
func FuzzPackets(f *testing.F) {
	b, err := New(Config{Addr: "127.0.0.1:0", EnrollRate: 1e9, EnrollBurst: 1e9, ConnectTimeout: 200 * time.Millisecond})
	if err != nil {
		f.Fatal(err)
	}
	var in checked
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, anyone{}, &in) }()
	f.Cleanup(func() { stop(); <-done })
	f.Add([]byte{0x30, 4, 0, 1, 'a', '{'}, true)
	f.Add([]byte{0x82, 6, 0, 9, 0, 0, 1, 'a'}, true)
	f.Add([]byte{0x10, 0xff, 0xff, 0xff, 0x7f}, false)
	f.Add([]byte("\x30\x21\x00\x1dkernex/v1/devices/x/heartbeat{}"), true)
	f.Fuzz(func(t *testing.T, sent []byte, in5 bool) {
		c, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		hello := connectPacket
		if in5 {
			hello = []byte("\x10\x28\x00\x04MQTT\x05\xc2\x00\x3c\x00\x00\x05dev-a\x00\x05dev-a\x00\x0dsesame-sesame")
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write(append(append([]byte{}, hello...), sent...)); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		for buf := make([]byte, 512); err == nil; {
			_, err = c.Read(buf)
		}
		if os.IsTimeout(err) {
			t.Fatal("the broker did not let go of a closed socket")
		}
		if topic := in.foreign(); topic != "" {
			t.Fatalf("received on %s", topic)
		}
	})
}

// checked is an Ingest that remembers a topic that device dev-a may not use.
type checked struct {
	mu  sync.Mutex
	bad string
}

func (c *checked) Receive(topic string, _ []byte) {
	if !strings.HasPrefix(topic, "kernex/v1/devices/dev-a/") {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.bad = topic
	}
}

func (c *checked) foreign() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bad
}

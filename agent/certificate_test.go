package agent_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/orchestrator/deviceca"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// guarded is an orchestrator that issues certificates, with a listener in front
// of its broker that asks devices for them.
type guarded struct {
	*orchestrator
	ca  *deviceca.CA
	cfg agent.Config

	mu     sync.Mutex
	issued int
	seen   []string // serial numbers that were presented and taken, as hex
}

// newGuarded makes one whose n-th certificate, from 1, was issued at made(n).
func newGuarded(t *testing.T, made func(n int) time.Time) *guarded {
	t.Helper()
	dir := t.TempDir()
	g := &guarded{orchestrator: newOrchestrator(t)}
	var err error
	if g.ca, err = deviceca.Open(filepath.Join(dir, "ca.key"), filepath.Join(dir, "ca.pem"), time.Hour); err != nil {
		t.Fatal(err)
	}
	g.certify = func(id string, key identity.PublicKey) string {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.issued++
		block, _ := pem.Decode(key.PEM())
		c, err := g.ca.Issue(id, block.Bytes, made(g.issued))
		if err != nil {
			t.Error(err)
		}
		return c.PEM
	}
	addr, roots := g.listen(t)
	g.cfg = config(g.orchestrator, t.TempDir())
	g.cfg.EnrollBroker, g.cfg.Broker, g.cfg.CA = g.cfg.Broker, "mqtts://"+addr, roots
	return g
}

// listen forwards connections whose client has a certificate of the CA to the
// broker. It returns its address and the file with its own authority.
func (g *guarded) listen(t *testing.T) (addr, rootsFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	rootsFile = filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(rootsFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	devices := x509.NewCertPool()
	devices.AppendCertsFromPEM([]byte(g.ca.PEM()))
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: devices,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { g.forward(conn.(*tls.Conn)) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait() // the agents stop before: they were started later
	})
	return l.Addr().String(), rootsFile
}

func (g *guarded) forward(conn *tls.Conn) {
	defer conn.Close()
	if conn.Handshake() != nil {
		return
	}
	g.mu.Lock()
	g.seen = append(g.seen, conn.ConnectionState().PeerCertificates[0].SerialNumber.Text(16))
	g.mu.Unlock()
	back, err := net.Dial("tcp", strings.TrimPrefix(g.broker.URL, "tcp://"))
	if err != nil {
		return
	}
	defer back.Close()
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(back, conn)
		_ = back.Close()
	})
	_, _ = io.Copy(conn, back)
	_ = conn.Close()
	up.Wait()
}

// file is the certificate that the agent keeps.
func (g *guarded) file(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(g.cfg.State, "identity", "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func now(int) time.Time { return time.Now() }

func TestADeviceConnectsWithTheCertificateOfItsEnrolment(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, now)
	d := start(g.orchestrator, g.cfg)
	g.await("the first state report", func() bool { return len(g.states) > 0 })
	d.stop()
	g.cfg.EnrollToken = "spent"
	start(g.orchestrator, g.cfg)
	g.await("a state report of the second start", func() bool { return g.states[len(g.states)-1].Session > 1 })
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.issued != 1 || len(g.seen) != 2 || g.seen[0] != g.seen[1] {
		t.Errorf("%d issued, presented %v", g.issued, g.seen)
	}
}

func TestADeviceWhoseCertificateIsNotTakenEnrolsAgainAndKeepsItsID(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*guarded) error{
		"ended": nil, // the first one is over when it is issued
		"lost":  func(g *guarded) error { return os.Remove(filepath.Join(g.cfg.State, "identity", "cert.pem")) },
		"broken": func(g *guarded) error {
			return os.WriteFile(filepath.Join(g.cfg.State, "identity", "cert.pem"), []byte("x"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGuarded(t, func(n int) time.Time {
				if n == 1 && lose == nil {
					return time.Now().Add(-2 * time.Hour)
				}
				return time.Now()
			})
			d := start(g.orchestrator, g.cfg)
			g.await("a state report", func() bool { return len(g.states) > 0 })
			if lose != nil {
				d.stop()
				if err := lose(g); err != nil {
					t.Fatal(err)
				}
				d = start(g.orchestrator, g.cfg)
				g.await("a state report of the second start", func() bool { return g.states[len(g.states)-1].Session > 1 })
			}
			g.edit(func() {
				if g.enrolled != 2 || len(g.devices) != 1 || g.devices[d.DeviceID()].Type() == "" {
					t.Errorf("%d enrolments, devices %v, this one is %s", g.enrolled, g.devices, d.DeviceID())
				}
			})
		})
	}
}

func TestACertificateIsRenewedOverMQTTAfterTwoThirdsOfItsLife(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, func(n int) time.Time {
		if n == 1 {
			return time.Now().Add(-50 * time.Minute) // of an hour
		}
		return time.Now()
	})
	d := start(g.orchestrator, g.cfg)
	g.await("a state report", func() bool { return len(g.states) > 0 })
	testkit.Eventually(t, 30*time.Second, func() bool { return serial(t, g.file(t)) != g.presented(0) })
	d.stop()
	start(g.orchestrator, g.cfg)
	g.await("a state report of the second start", func() bool { return g.states[len(g.states)-1].Session > 1 })
	if g.presented(1) != serial(t, g.file(t)) || g.presented(1) == g.presented(0) {
		t.Errorf("presented %s, then %s; kept %s", g.presented(0), g.presented(1), serial(t, g.file(t)))
	}
	g.edit(func() {
		wants := slices.ContainsFunc(g.requests, func(r protocol.Request) bool { return r.Want == protocol.WantCertificate })
		if g.enrolled != 1 || !wants {
			t.Errorf("%d enrolments, requests %+v", g.enrolled, g.requests)
		}
	})
}

// presented is the serial number of the n-th connection's certificate.
func (g *guarded) presented(n int) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen[n]
}

func serial(t *testing.T, text []byte) string {
	t.Helper()
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c.SerialNumber.Text(16)
}

package broker_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/mqttclient"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// selfSigned makes a certificate for 127.0.0.1 and the pool that trusts it.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestOneBrokerServesPlainAndTLSTogether(t *testing.T) {
	t.Parallel()
	cert, pool := selfSigned(t)
	s := brokertest.Start(t, brokertest.Logins{"device": {Role: broker.RoleDevice}}, nil, func(c *broker.Config) {
		c.Also = []broker.Listen{{Addr: "127.0.0.1:0", TLS: &tls.Config{Certificates: []tls.Certificate{cert}}}}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i, scheme := range []string{"tcp", "mqtts"} {
		c, err := mqttclient.Dial(ctx, mqttclient.Options{
			Broker: scheme + "://" + s.Addrs()[i].String(), ClientID: "dev-" + scheme, Username: "dev-" + scheme, Password: "device", TLS: &tls.Config{RootCAs: pool},
		})
		if err != nil {
			t.Fatalf("%s: %v", scheme, err)
		}
		defer func() { _ = c.Close(context.Background()) }()
	}
	if n := s.Connected(); n != 2 {
		t.Errorf("%d clients", n)
	}
}

func TestAnAddressInUseLeavesNoneOpen(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	_ = free.Close()
	if _, err := broker.New(broker.Config{Addr: addr, Also: []broker.Listen{{Addr: l.Addr().String()}}}); err == nil {
		t.Fatal("a broker listens on a taken address")
	}
	again, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("the first address stays taken: %v", err)
	}
	_ = again.Close()
}

func TestAKickEndsTheConnectionsOfAnAPITokenToo(t *testing.T) {
	t.Parallel()
	told := make(chan string, 1)
	s := brokertest.Start(t, brokertest.Logins{
		"one": {Role: broker.RoleMonitor, ID: "tok-one"}, "two": {Role: broker.RoleMonitor, ID: "tok-two"}, "orch": {Role: broker.RoleService, ID: "tok-orch"},
	}, nil, func(c *broker.Config) { c.OnKick = func(id string) { told <- id } })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	dial := func(user, password string) *mqttclient.Client {
		c, err := mqttclient.Dial(ctx, mqttclient.Options{Broker: s.URL, ClientID: "tool-" + password, Username: user, Password: password})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close(context.Background()) })
		return c
	}
	one, two, orch := dial("monitor", "one"), dial("monitor", "two"), dial("service", "orch")
	if err := orch.Publish(ctx, protocol.NewTopics("").Kick("tok-one"), []byte("{}"), 1, false); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return one.Err() != nil })
	if id := <-told; id != "tok-one" || two.Err() != nil {
		t.Errorf("told of %q; the other monitor: %v", id, two.Err())
	}
}

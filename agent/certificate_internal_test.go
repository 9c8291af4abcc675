package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/identity"
)

// issuing makes a key and a function that issues certificates to it.
func issuing(t *testing.T) (identity.PrivateKey, func(change func(*x509.Certificate)) string) {
	t.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.ParsePrivateKeyPEM(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return key, func(change func(*x509.Certificate)) string {
		t.Helper()
		c := &x509.Certificate{SerialNumber: big.NewInt(256), Subject: pkix.Name{CommonName: "dev-1"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			NotBefore: time.Unix(0, 0), NotAfter: time.Unix(0, 0).Add(90 * 24 * time.Hour)}
		change(c)
		der, err := x509.CreateCertificate(rand.Reader, c, c, signer.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
}

func openCert(t *testing.T, dir string, key identity.PrivateKey) *certificate {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "identity"), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := openCertificate(stateDir{dir: dir, fs: &durable.FS{}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOnlyACertificateForThisDeviceIsKept(t *testing.T) {
	t.Parallel()
	key, issue := issuing(t)
	other, _ := issuing(t)
	dir := t.TempDir()
	c := openCert(t, dir, key)
	good := issue(func(*x509.Certificate) {})
	for name, text := range map[string]string{
		"another device": issue(func(c *x509.Certificate) { c.Subject.CommonName = "dev-2" }),
		"a server's":     issue(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"empty":          "",
	} {
		if taken, err := c.take(text, "dev-1"); taken || err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if taken, err := openCert(t, t.TempDir(), other).take(good, "dev-1"); taken || err == nil {
		t.Error("another key: taken")
	}
	if c.get() != nil {
		t.Fatal("there is one before any was good")
	}
	if taken, err := c.take(good, "dev-1"); !taken || err != nil {
		t.Fatalf("the good one: %v", err)
	}
	if taken, err := c.take(good, "dev-1"); taken || err != nil {
		t.Errorf("the same again: %v, %v", taken, err)
	}
	if again := openCert(t, dir, key).get(); again == nil || !again.Leaf.Equal(c.get().Leaf) {
		t.Error("another one after a restart")
	}
}

func TestRenewalIsAskedForFromTwoThirdsOnAndThenAgain(t *testing.T) {
	t.Parallel()
	key, issue := issuing(t)
	c := openCert(t, t.TempDir(), key)
	begin, day := time.Unix(0, 0), 24*time.Hour
	if ask, _ := c.due(begin); ask {
		t.Error("asked without a certificate")
	}
	if _, err := c.take(issue(func(*x509.Certificate) {}), "dev-1"); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		at  time.Duration
		ask bool
	}{{0, false}, {59 * day, false}, {60 * day, true}, {60*day + 5*time.Hour, false}, {60*day + 6*time.Hour, true}, {91 * day, true}} {
		ask, next := c.due(begin.Add(step.at))
		if ask != step.ask || next <= 0 || next > time.Hour {
			t.Errorf("after %s: %v, again in %s", step.at, ask, next)
		}
	}
	if _, err := c.take(issue(func(c *x509.Certificate) { c.SerialNumber = big.NewInt(255); c.NotAfter = begin.Add(900 * day) }), "dev-1"); err != nil {
		t.Fatal(err)
	}
	if ask, _ := c.due(begin.Add(601 * day)); ask {
		t.Error("asked at two thirds, although its serial number is the last of the spread")
	}
	if ask, _ := c.due(begin.Add(630 * day)); !ask {
		t.Error("not asked after the spread")
	}
	c.reconnected()
	if ask, _ := c.due(begin.Add(630 * day)); !ask {
		t.Error("not asked on a new connection")
	}
}

func TestADeviceWithoutAClockRenewsByTheServersTime(t *testing.T) {
	t.Parallel()
	key, issue := issuing(t)
	c := openCert(t, t.TempDir(), key)
	now := time.Now()
	if _, err := c.take(issue(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(1000*time.Hour), now.Add(1300*time.Hour) }), "dev-1"); err != nil {
		t.Fatal(err)
	}
	if ask, _ := c.due(now); ask {
		t.Error("asked by the device's clock")
	}
	c.serverTime(0) // says nothing
	c.serverTime(now.Add(1250 * time.Hour).Unix())
	if ask, _ := c.due(now); !ask {
		t.Error("not asked by the server's")
	}
}

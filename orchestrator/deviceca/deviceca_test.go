package deviceca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/deviceca"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
)

func open(t *testing.T, dir string, life time.Duration) *deviceca.CA {
	t.Helper()
	ca, err := deviceca.Open(filepath.Join(dir, "ca.key"), filepath.Join(dir, "ca.pem"), life)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func parse(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(rest) > 0 {
		t.Fatalf("not one PEM block: %q", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func der(t *testing.T, key identity.PrivateKey) []byte {
	t.Helper()
	block, _ := pem.Decode(key.Public().PEM())
	return block.Bytes
}

func TestACertificateIsForTheDevicesKeyAsAClientOnly(t *testing.T) {
	t.Parallel()
	ca := open(t, t.TempDir(), 0)
	roots := x509.NewCertPool()
	roots.AddCert(parse(t, ca.PEM()))
	now := time.Now()
	for _, kind := range []string{identity.KindEd25519, identity.KindP256, identity.KindRSA2048} {
		key, err := identity.Generate(kind)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ca.Issue("dev-1", der(t, key), now)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := key.Certificate([]byte(got.PEM))
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		leaf := pair.Leaf
		if leaf.Subject.CommonName != "dev-1" || leaf.IsCA || leaf.SerialNumber.Text(16) != got.Serial || got.Issuer != ca.KeyID() {
			t.Errorf("%s: %v, CA %v, serial %x, %+v", kind, leaf.Subject, leaf.IsCA, leaf.SerialNumber, got)
		}
		if life := leaf.NotAfter.Sub(now); life < 90*24*time.Hour-time.Second || life > 90*24*time.Hour || !leaf.NotAfter.Equal(got.NotAfter) || leaf.NotBefore.After(now) {
			t.Errorf("%s: %s to %s", kind, leaf.NotBefore, leaf.NotAfter)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
			t.Errorf("%s: may be a server", kind)
		}
		again, err := ca.Issue("dev-1", der(t, key), now)
		if err != nil || again.Serial == got.Serial {
			t.Errorf("%s: the same serial number twice: %s, %v", kind, again.Serial, err)
		}
	}
	key, err := identity.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", "a/b", "+", "Dev"} {
		if _, err := ca.Issue(id, der(t, key), now); err == nil {
			t.Errorf("a certificate for %q", id)
		}
	}
}

func TestTheFilesAreMadeOnceAndTheKeyIsSecret(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := open(t, dir, 0)
	key, cert := filepath.Join(dir, "ca.key"), filepath.Join(dir, "ca.pem")
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	if again := open(t, dir, 0); again.PEM() != first.PEM() {
		t.Error("another CA at the second start")
	}
	// A lost certificate comes back for the same key: what was issued still holds.
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	device, err := identity.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := first.Issue("dev-1", der(t, device), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, 0)
	if err := parse(t, leaf.PEM).CheckSignatureFrom(parse(t, again.PEM())); err != nil || again.KeyID() != first.KeyID() {
		t.Errorf("by the new certificate: %v, %s and %s", err, again.KeyID(), first.KeyID())
	}
}

func TestACAThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	other := t.TempDir()
	open(t, other, 0)
	foreign, err := os.ReadFile(filepath.Join(other, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(key, cert string) error{
		"another key":     func(_, cert string) error { return os.WriteFile(cert, foreign, 0o600) },
		"chmod 600":       func(key, _ string) error { return os.Chmod(key, 0o640) },
		"not one PEM":     func(_, cert string) error { return os.WriteFile(cert, []byte("x"), 0o600) },
		"no such file":    func(key, _ string) error { return os.Remove(key) },
		"PRIVATE KEY":     func(key, _ string) error { return os.WriteFile(key, []byte("x"), 0o600) },
		"may not sign":    func(key, cert string) error { return selfSigned(key, cert, false, time.Hour) },
		"has ended":       func(key, cert string) error { return selfSigned(key, cert, true, -time.Hour) },
		"must be between": nil,
	} {
		dir, life := t.TempDir(), time.Duration(0)
		open(t, dir, 0)
		key, cert := filepath.Join(dir, "ca.key"), filepath.Join(dir, "ca.pem")
		if spoil == nil {
			life = time.Second
		} else if err := spoil(key, cert); err != nil {
			t.Fatal(err)
		}
		if _, err := deviceca.Open(key, cert, life); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// selfSigned writes a certificate for a new key, which may be no CA.
func selfSigned(keyFile, certFile string, isCA bool, life time.Duration) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(life), IsCA: isCA, BasicConstraintsValid: true, SubjectKeyId: []byte{1}}
	if isCA {
		c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	public, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: public}), 0o600)
}

func TestTheRevocationListNamesWhatIsRevoked(t *testing.T) {
	t.Parallel()
	ca := open(t, t.TempDir(), 0)
	now := time.Now()
	text, err := ca.CRL([]fleet.RevokedCertificate{{Serial: "abc", RevokedAt: now}}, now)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(parse(t, ca.PEM())); err != nil {
		t.Error(err)
	}
	if e := list.RevokedCertificateEntries; len(e) != 1 || e[0].SerialNumber.Text(16) != "abc" || !list.NextUpdate.After(now.Add(24*time.Hour)) {
		t.Errorf("%+v until %s", e, list.NextUpdate)
	}
	if _, err := ca.CRL([]fleet.RevokedCertificate{{Serial: "xyz"}}, now); err == nil {
		t.Error("a serial number that is none")
	}
}

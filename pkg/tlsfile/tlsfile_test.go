package tlsfile

import (
	"context"
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

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// write makes a pair in dir, replacing the one before.
func write(t *testing.T, dir string, end time.Time) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(end.UnixNano()), NotBefore: end.Add(-48 * time.Hour), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "c.crt"), filepath.Join(dir, "c.key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestAChangedCertificateIsUsedAndABadOneIsNot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := time.Now().Add(time.Hour)
	cert, key := write(t, dir, first)
	p, err := Load(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 16)
	log := testkit.Logger(t).Output(words(said))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Watch(ctx, time.Millisecond, log) }()
	await := func(text string) {
		t.Helper()
		for line := range said {
			if strings.Contains(line, text) {
				return
			}
		}
	}
	await("ends soon")
	if err := os.WriteFile(cert, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	await("are not used")
	if got, err := p.ClientCertificate(nil); err != nil || !got.Leaf.NotAfter.Equal(first.UTC().Truncate(time.Second)) {
		t.Errorf("the last good certificate is gone: %v", err)
	}
	write(t, dir, first.Add(24*time.Hour))
	await("read again")
	if !p.Expires().After(first) {
		t.Errorf("expires %v", p.Expires())
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// words is a writer to a channel.
type words chan string

func (w words) Write(p []byte) (int, error) {
	select {
	case w <- string(p):
	default:
	}
	return len(p), nil
}

func TestRootsHoldACertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := write(t, dir, time.Now().Add(time.Hour))
	if _, err := Roots(cert); err != nil {
		t.Error(err)
	}
	for _, path := range []string{key, filepath.Join(dir, "none")} {
		if _, err := Roots(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

package deviceca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/secretfile"
)

// caLife is that of a CA made here. Replacing one means giving brokers both for
// as long as the devices' certificates live.
const caLife = 20 * 365 * 24 * time.Hour

// Open reads the CA's private key (PKCS#8, mode 0600) and certificate, both PEM,
// and makes what is missing: both at the first start (ECDSA P-256, which every
// TLS library knows), or the certificate of a key. Every replica needs the same
// two files. life is that of devices' certificates; 0 is DefaultLife.
func Open(keyFile, certFile string, life time.Duration) (*CA, error) {
	if life == 0 {
		life = DefaultLife
	}
	if life < MinLife || life > MaxLife {
		return nil, fleet.Errorf(fleet.CodeInvalid, "devices' certificates are to live %v, it must be between %v and %v", life, MinLife, MaxLife)
	}
	cert, err := os.ReadFile(certFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the certificate of the CA: %w", err)
	}
	text, err := secretfile.Read(keyFile)
	if errors.Is(err, fs.ErrNotExist) && len(cert) == 0 {
		text, err = makeKey(keyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("key of the CA: %w", err)
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("key of the CA, %s: %w", keyFile, err)
	}
	if len(cert) == 0 {
		if cert, err = makeCertificate(certFile, key); err != nil {
			return nil, fmt.Errorf("make the certificate of the CA: %w", err)
		}
	}
	parsed, err := parseCertificate(cert, key, time.Now())
	if err != nil {
		return nil, fmt.Errorf("certificate of the CA, %s: %w", certFile, err)
	}
	return &CA{key: key, cert: parsed, pem: encode(parsed.Raw), life: life}, nil
}

func makeKey(path string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	text := string(bytes.TrimSpace(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	return text, secretfile.Write(path, text)
}

func parseKey(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("not one PEM block of type PRIVATE KEY")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%T cannot sign", key)
	}
	return signer, nil
}

// makeCertificate writes the CA's certificate. Its subject and key id follow
// from the key: one that was lost is replaced by one that fits as well.
func makeCertificate(path string, key crypto.Signer) ([]byte, error) {
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(public)
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Kernex devices " + hex.EncodeToString(id[:4])},
		NotBefore: now.Add(-skew), NotAfter: now.Add(caLife), SubjectKeyId: id[:20],
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	text := []byte(encode(der))
	return text, (&durable.FS{}).WriteFile("device-ca", path, text, 0o644)
}

func parseCertificate(text []byte, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one PEM block of type CERTIFICATE")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(key.Public()):
		return nil, errors.New("it belongs to another key")
	case !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 || cert.KeyUsage&x509.KeyUsageCRLSign == 0:
		return nil, errors.New("it may not sign certificates and revocation lists")
	case len(cert.SubjectKeyId) == 0:
		return nil, errors.New("it has no subject key id")
	case now.After(cert.NotAfter):
		return nil, fmt.Errorf("it has ended at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return cert, nil
}

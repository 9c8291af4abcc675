package identity

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
)

func selfSigned(t *testing.T, k PrivateKey) []byte {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.signer.Public(), k.signer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestOnlyACertificateForTheKeyIsTaken(t *testing.T) {
	t.Parallel()
	key, err := Generate("")
	if err != nil {
		t.Fatal(err)
	}
	other, err := Generate(KindP256)
	if err != nil {
		t.Fatal(err)
	}
	own, foreign := selfSigned(t, key), selfSigned(t, other)
	secret, err := key.PEM()
	if err != nil {
		t.Fatal(err)
	}
	if c, err := key.Certificate(append(bytes.Clone(own), foreign...)); err != nil || len(c.Certificate) != 2 || c.Leaf == nil {
		t.Fatalf("with the one that leads to the CA: %v", err)
	}
	for name, text := range map[string][]byte{
		"empty": nil, "white space": []byte(" \n"), "another key": foreign, "text before": append([]byte("x\n"), own...),
		"text after": append(bytes.Clone(own), 'x'), "a private key": append(bytes.Clone(own), secret...),
		"not DER": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
	} {
		if _, err := key.Certificate(text); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := (PrivateKey{}).Certificate(own); err == nil {
		t.Error("no key: taken")
	}
}

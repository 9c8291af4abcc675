package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// The kinds of key that Generate makes. Ed25519 is the default: on a small
// device an RSA-4096 key takes over a second to make and 12 ms a signature,
// Ed25519 a fraction of a millisecond for both.
const (
	KindEd25519 = "ed25519"
	KindP256    = "p256"
	KindRSA2048 = "rsa2048"
	KindRSA3072 = "rsa3072"
	KindRSA4096 = "rsa4096"
)

// PrivateKey is a device's private key. The zero value is no key; values come
// from Generate and ParsePrivateKeyPEM and are always of an accepted type.
type PrivateKey struct {
	signer crypto.Signer
	public PublicKey
}

// Generate makes a new private key of one of the Kind constants; an empty kind
// means KindEd25519.
func Generate(kind string) (PrivateKey, error) {
	var signer crypto.Signer
	var err error
	switch kind {
	case "", KindEd25519:
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	case KindP256:
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case KindRSA2048:
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case KindRSA3072:
		signer, err = rsa.GenerateKey(rand.Reader, 3072)
	case KindRSA4096:
		signer, err = rsa.GenerateKey(rand.Reader, 4096)
	default:
		return PrivateKey{}, fmt.Errorf("unknown key kind %q, want %s, %s, %s, %s or %s",
			kind, KindEd25519, KindP256, KindRSA2048, KindRSA3072, KindRSA4096)
	}
	if err != nil {
		return PrivateKey{}, fmt.Errorf("generate %s key: %w", kind, err)
	}
	return newPrivateKey(signer)
}

// ParsePrivateKeyPEM reads one PKCS#8 "PRIVATE KEY" block with nothing after
// it. The key must be of a type that a device may enrol with.
func ParsePrivateKeyPEM(data []byte) (PrivateKey, error) {
	der, err := onlyBlock(data, "PRIVATE KEY")
	if err != nil {
		return PrivateKey{}, fmt.Errorf("parse private key: %w", err)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("parse private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return PrivateKey{}, fmt.Errorf("parse private key: %T cannot sign", key)
	}
	return newPrivateKey(signer)
}

func newPrivateKey(signer crypto.Signer) (PrivateKey, error) {
	public, err := newPublicKey(signer.Public())
	if err != nil {
		return PrivateKey{}, err
	}
	return PrivateKey{signer: signer, public: public}, nil
}

// PEM returns the key as one PKCS#8 "PRIVATE KEY" block. It is a secret: write
// it 0600.
func (k PrivateKey) PEM() ([]byte, error) {
	if k.signer == nil {
		return nil, errNoKey
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Public returns the public half.
func (k PrivateKey) Public() PublicKey { return k.public }

// String keeps the secret out of logs and %v.
func (k PrivateKey) String() string { return "private key of " + k.public.Fingerprint() }

// GoString keeps the secret out of %#v.
func (k PrivateKey) GoString() string { return k.String() }

var errNoKey = errors.New("no key")

// sign returns the JWS signature of the key type's one algorithm over message.
func (k PrivateKey) sign(message string) ([]byte, error) {
	if k.signer == nil {
		return nil, errNoKey
	}
	return k.public.method().Sign(message, k.signer)
}

package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/golang-jwt/jwt/v5"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// KeyType names the family of a public key, as it is stored and shown.
type KeyType string

// The types of key that a device may have, with the one signature algorithm
// (JWS name) that each is bound to.
const (
	TypeEd25519 KeyType = "ed25519" // EdDSA
	TypeP256    KeyType = "p256"    // ES256; what TPMs offer
	TypeRSA     KeyType = "rsa"     // RS256; 2048 to 4096 bits, e = 65537
)

// maxPEM bounds what is parsed: a 4096-bit RSA private key in PEM takes 3.3 KB.
const maxPEM = 8 << 10

// Bounds of RSA keys. Below 2048 bits is too weak; above 4096 a signature
// check costs the server more than it may cost for a stranger.
const (
	minRSABits  = 2048
	maxRSABits  = 4096
	rsaExponent = 65537
)

// PublicKey is a device's public key. The zero value is no key; values come
// from ParsePublicKeyPEM or a PrivateKey and are always of an accepted type.
type PublicKey struct {
	typ KeyType
	key crypto.PublicKey
	der []byte // SubjectPublicKeyInfo, in Go's canonical encoding
}

// ParsePublicKeyPEM reads one "PUBLIC KEY" block (SubjectPublicKeyInfo) with
// nothing after it. Anything but an Ed25519, an ECDSA P-256 or an RSA key of
// 2048 to 4096 bits with e = 65537 is refused with the reason, as
// fleet.CodeInvalid or fleet.CodeUnsupported.
func ParsePublicKeyPEM(data []byte) (PublicKey, error) {
	der, err := onlyBlock(data, "PUBLIC KEY")
	if err != nil {
		return PublicKey{}, fleet.Errorf(fleet.CodeInvalid, "public key: %v", err)
	}
	return ParsePublicKeyDER(der)
}

// ParsePublicKeyDER reads a SubjectPublicKeyInfo under the same rules.
func ParsePublicKeyDER(der []byte) (PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return PublicKey{}, fleet.Errorf(fleet.CodeInvalid, "public key: not a SubjectPublicKeyInfo that can be read: %v", err)
	}
	return newPublicKey(key)
}

func newPublicKey(key crypto.PublicKey) (PublicKey, error) {
	var typ KeyType
	switch k := key.(type) {
	case ed25519.PublicKey:
		typ = TypeEd25519
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return PublicKey{}, unsupported("ECDSA on %s", k.Curve.Params().Name)
		}
		typ = TypeP256
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return PublicKey{}, unsupported("RSA of %d bits", bits)
		}
		if k.E != rsaExponent {
			return PublicKey{}, unsupported("RSA with exponent %d", k.E)
		}
		typ = TypeRSA
	default:
		return PublicKey{}, unsupported("%T", key)
	}
	// Encoded again so that one key has one hash, whatever DER it came in.
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return PublicKey{}, fmt.Errorf("encode public key: %w", err)
	}
	return PublicKey{typ: typ, key: key, der: der}, nil
}

func unsupported(format string, args ...any) error {
	return fleet.Errorf(fleet.CodeUnsupported,
		"key type not accepted: %s; use Ed25519, ECDSA P-256 or RSA of %d to %d bits with exponent %d",
		fmt.Sprintf(format, args...), minRSABits, maxRSABits, rsaExponent)
}

// Type returns the key's type, "" for the zero value.
func (k PublicKey) Type() KeyType { return k.typ }

// PEM returns the key as one "PUBLIC KEY" block.
func (k PublicKey) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der})
}

// Hash returns the lower-case hex SHA-256 of the key's SubjectPublicKeyInfo
// DER: the name under which the key is stored and looked up.
func (k PublicKey) Hash() string {
	sum := sha256.Sum256(k.der)
	return hex.EncodeToString(sum[:])
}

// Fingerprint returns the same digest in the form that people compare, as SSH
// shows it: "SHA256:" and unpadded base64.
func (k PublicKey) Fingerprint() string {
	sum := sha256.Sum256(k.der)
	return FingerprintOf(sum[:])
}

// FingerprintOf is Fingerprint for a key of which only the digest is at hand.
func FingerprintOf(hash []byte) string {
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(hash)
}

// Equal reports whether both are the same key.
func (k PublicKey) Equal(other PublicKey) bool {
	return k.typ != "" && bytes.Equal(k.der, other.der)
}

// method is the one signature algorithm of the key's type.
func (k PublicKey) method() jwt.SigningMethod {
	switch k.typ {
	case TypeEd25519:
		return jwt.SigningMethodEdDSA
	case TypeP256:
		return jwt.SigningMethodES256
	case TypeRSA:
		return jwt.SigningMethodRS256
	}
	return nil
}

// onlyBlock returns the content of the single PEM block in data, which must
// have the given type and nothing but white space around it.
func onlyBlock(data []byte, typ string) ([]byte, error) {
	if len(data) > maxPEM {
		return nil, fmt.Errorf("%d bytes of PEM, want at most %d", len(data), maxPEM)
	}
	data = bytes.TrimSpace(data)
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return nil, fmt.Errorf("not PEM, want one %q block", typ)
	case block.Type != typ && strings.HasSuffix(block.Type, "PRIVATE KEY") && typ == "PUBLIC KEY":
		return nil, fmt.Errorf("this is a private key (%q): keep it secret and send the public key", block.Type)
	case block.Type != typ:
		return nil, fmt.Errorf("PEM block is %q, want %q", block.Type, typ)
	case len(block.Headers) > 0:
		return nil, fmt.Errorf("PEM block %q has headers, want none", typ)
	case len(rest) > 0:
		return nil, fmt.Errorf("data after the %q block", typ)
	case !bytes.HasPrefix(data, []byte("-----BEGIN")):
		return nil, fmt.Errorf("data before the %q block", typ)
	}
	return block.Bytes, nil
}

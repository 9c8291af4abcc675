package identity

import (
	"encoding/binary"
	"fmt"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// enrollContext separates this signature from every other that a device key
// makes: no token and no later message starts with these bytes.
const enrollContext = "kernex-enroll-v1"

// SignEnroll returns the proof that the device holds the private key: a
// signature (EdDSA, ES256 or RS256 by key type, in the raw form that JWS uses)
// over four fields, each preceded by its length as 4 bytes, big-endian:
// "kernex-enroll-v1", the challenge, the connection's nonce, and the public
// key's SubjectPublicKeyInfo DER.
func SignEnroll(key PrivateKey, challenge, nonce string) ([]byte, error) {
	sig, err := key.sign(enrollMessage(key.public, challenge, nonce))
	if err != nil {
		return nil, fmt.Errorf("sign enrolment: %w", err)
	}
	return sig, nil
}

// VerifyEnroll reports whether sig is SignEnroll's answer by the holder of key
// to this challenge on the connection with this nonce. A wrong signature is
// fleet.CodeBadSignature.
func VerifyEnroll(key PublicKey, challenge, nonce string, sig []byte) error {
	method := key.method()
	if method == nil {
		return fmt.Errorf("verify enrolment: %w", errNoKey)
	}
	if err := method.Verify(enrollMessage(key, challenge, nonce), sig, key.key); err != nil {
		return fleet.Wrap(fleet.CodeBadSignature, err, "the enrolment signature does not verify with the key in the request")
	}
	return nil
}

// enrollMessage is injective: length prefixes keep a byte from moving between
// challenge and nonce unseen.
func enrollMessage(key PublicKey, challenge, nonce string) string {
	var b []byte
	for _, field := range []string{enrollContext, challenge, nonce, string(key.der)} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	return string(b)
}

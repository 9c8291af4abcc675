package protocol

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"

	"github.com/kernexhq/kernex/pkg/fleet"
)

type jwsHeader struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
}

// KeyID names a command key in a JWS header: the first 8 bytes of the key's
// SHA-256, hex. It only says which key to try; it proves nothing.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:8])
}

func signJWS(payload []byte, key ed25519.PrivateKey) []byte {
	head, _ := json.Marshal(jwsHeader{Alg: "EdDSA", Kid: KeyID(key.Public().(ed25519.PublicKey))}) // two strings: cannot fail
	enc := base64.RawURLEncoding
	out := enc.AppendEncode(nil, head)
	out = append(out, '.')
	out = enc.AppendEncode(out, payload)
	sig := ed25519.Sign(key, out)
	out = append(out, '.')
	return enc.AppendEncode(out, sig)
}

// openJWS returns the payload of a compact JWS signed by key. The algorithm is
// ours, not the header's: a header that names another one is refused.
func openJWS(token []byte, key ed25519.PublicKey) ([]byte, error) {
	bad := func(why string) error { return fleet.Errorf(fleet.CodeBadSignature, "command signature: %s", why) }
	part := bytes.Split(token, []byte("."))
	if len(part) != 3 {
		return nil, bad("not a compact JWS of three parts")
	}
	enc := base64.RawURLEncoding.Strict()
	var decoded [3][]byte
	for i, p := range part {
		b, err := enc.AppendDecode(nil, p)
		if err != nil {
			return nil, bad("a part is not base64url")
		}
		decoded[i] = b
	}
	var head jwsHeader
	if err := json.Unmarshal(decoded[0], &head); err != nil || head.Alg != "EdDSA" {
		return nil, bad("the header does not say EdDSA")
	}
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, token[:len(part[0])+1+len(part[1])], decoded[2]) {
		return nil, bad("it does not verify by the pinned command key")
	}
	return decoded[1], nil
}

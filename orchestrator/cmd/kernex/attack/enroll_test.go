package attack

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// enrolment is one connection that enrols.
type enrolment struct {
	*raw
	nonce string
}

func (s *system) enrol(t *testing.T) enrolment {
	t.Helper()
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	e := enrolment{nonce: hex.EncodeToString(b[:])}
	e.raw = s.login(t, hello{id: e.nonce, username: "enroll"})
	if code := e.subscribe(topics.EnrollReply(e.nonce)); code >= 0x80 {
		t.Fatalf("SUBACK %#x", code)
	}
	return e
}

// ask sends a request and returns the reply.
func (e enrolment) ask(v any) (r protocol.EnrollReply) {
	e.t.Helper()
	e.publish(topics.EnrollRequest(e.nonce), v, 1)
	e.message(topics.EnrollReply(e.nonce), func(payload []byte) bool {
		if err := json.Unmarshal(payload, &r); err != nil {
			e.t.Fatalf("reply %s: %v", payload, err)
		}
		return true
	})
	return r
}

// proof signs a challenge as docs/protocol.md says.
func proof(t *testing.T, key crypto.Signer, challenge, nonce string) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, field := range []string{"kernex-enroll-v1", challenge, nonce, string(der)} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(field))), field...)
	}
	sig, err := key.Sign(rand.Reader, b, crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sig)
}

func edKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	k, _ := newKey(t, "")
	return k.(ed25519.PrivateKey)
}

// enrolments are keys, proofs and claim tokens that make no device.
func (x *target) enrolments(*testing.T) []attack {
	var list []attack
	refused := func(name string, code fleet.Code, run func(t *testing.T) protocol.EnrollReply) {
		list = append(list, attack{name: name, run: func(t *testing.T) {
			r := run(t)
			if r.Error == nil || r.Error.Code != code || r.DeviceID != "" || r.RegistrationToken != "" || r.Challenge != "" {
				t.Errorf("reply %+v, error %+v, want %s", r, r.Error, code)
			}
		}})
	}
	for name, key := range map[string]func(t *testing.T) string{
		"RSA-1024":        func(t *testing.T) string { return publicPEM(t, weakRSA(t, 1024, 65537)) },
		"RSA with e = 3":  func(t *testing.T) string { return publicPEM(t, weakRSA(t, 0, 3)) },
		"RSA with e = 1":  func(t *testing.T) string { return publicPEM(t, weakRSA(t, 0, 1)) },
		"a P-224 key":     func(t *testing.T) string { return curvePEM(t, elliptic.P224()) },
		"a P-521 key":     func(t *testing.T) string { return curvePEM(t, elliptic.P521()) },
		"a private key":   func(t *testing.T) string { return privatePEM(t) },
		"no key":          func(*testing.T) string { return "" },
		"two keys":        func(t *testing.T) string { return publicPEM(t, edKey(t).Public()) + publicPEM(t, edKey(t).Public()) },
		"an SSH key":      func(*testing.T) string { return "ssh-ed25519 AAAA" },
		"a truncated key": func(t *testing.T) string { return publicPEM(t, edKey(t).Public())[:60] },
	} {
		list = append(list, attack{name: "key: " + name, run: func(t *testing.T) {
			r := x.enrol(t).ask(protocol.EnrollRequest{PublicKey: key(t), Token: x.claimTokens["good"]})
			if r.Error == nil || r.Error.Code != fleet.CodeInvalid && r.Error.Code != fleet.CodeUnsupported || r.Challenge != "" {
				t.Errorf("reply %+v, error %+v", r, r.Error)
			}
		}})
	}
	for name, payload := range map[string]string{
		"no JSON": "hello", "duplicate keys": `{"public_key":"a","public_key":"b"}`, "serial with a line feed": `{"public_key":"a","serial":"a\nb"}`,
		"metadata of 9 KiB": `{"public_key":"a","hardware_metadata":{"a":"` + strings.Repeat("x", 9<<10) + `"}}`,
	} {
		list = append(list, attack{name: "request: " + name, run: func(t *testing.T) {
			if r := x.enrol(t).ask(payload); r.Error == nil || r.Error.Code != fleet.CodeInvalid && r.Error.Code != fleet.CodeTooLarge {
				t.Errorf("reply %+v, error %+v", r, r.Error)
			}
		}})
	}
	// A good exchange but for one thing.
	type exchange struct {
		e   enrolment
		key ed25519.PrivateKey
		req protocol.EnrollRequest
	}
	begin := func(t *testing.T, token string) exchange {
		t.Helper()
		c := exchange{e: x.enrol(t), key: edKey(t)}
		c.req = protocol.EnrollRequest{PublicKey: publicPEM(t, c.key.Public()), Token: token}
		r := c.e.ask(c.req)
		if r.Challenge == "" {
			t.Fatalf("no challenge: %+v", r.Error)
		}
		c.req.Challenge = r.Challenge
		c.req.Signature = proof(t, c.key, r.Challenge, c.e.nonce)
		return c
	}
	for _, name := range []string{"used", "revoked", "expired", "serial"} {
		refused("claim token: "+name, fleet.CodeUnauthorized, func(t *testing.T) protocol.EnrollReply {
			c := begin(t, x.claimTokens[name])
			return c.e.ask(c.req)
		})
	}
	refused("claim token: a guess", fleet.CodeUnauthorized, func(t *testing.T) protocol.EnrollReply {
		c := begin(t, "ke_"+strings.Repeat("A", 43))
		return c.e.ask(c.req)
	})
	refused("claim token: an API token", fleet.CodeUnauthorized, func(t *testing.T) protocol.EnrollReply {
		c := begin(t, x.admin)
		return c.e.ask(c.req)
	})
	refused("claim token: serial of somebody else", fleet.CodeUnauthorized, func(t *testing.T) protocol.EnrollReply {
		c := begin(t, x.claimTokens["serial"])
		c.req.Serial = "SN-2"
		return c.e.ask(c.req)
	})
	refused("proof: by another key", fleet.CodeBadSignature, func(t *testing.T) protocol.EnrollReply {
		c := begin(t, x.claimTokens["good"])
		c.req.Signature = proof(t, edKey(t), c.req.Challenge, c.e.nonce)
		return c.e.ask(c.req)
	})
	refused("proof: for another connection", fleet.CodeBadSignature, func(t *testing.T) protocol.EnrollReply {
		c := begin(t, x.claimTokens["good"])
		c.req.Signature = proof(t, c.key, c.req.Challenge, nonce)
		return c.e.ask(c.req)
	})
	refused("proof: none", fleet.CodeBadSignature, func(t *testing.T) protocol.EnrollReply {
		c := begin(t, x.claimTokens["good"])
		c.req.Signature = ""
		return c.e.ask(c.req)
	})
	refused("proof: not base64url", fleet.CodeInvalid, func(t *testing.T) protocol.EnrollReply {
		c := begin(t, x.claimTokens["good"])
		c.req.Signature = "!!"
		return c.e.ask(c.req)
	})
	refused("challenge: of another connection", fleet.CodeUnauthorized, func(t *testing.T) protocol.EnrollReply {
		c, again := begin(t, x.claimTokens["good"]), x.enrol(t)
		c.req.Signature = proof(t, c.key, c.req.Challenge, again.nonce)
		return again.ask(c.req)
	})
	refused("challenge: for another key", fleet.CodeUnauthorized, func(t *testing.T) protocol.EnrollReply {
		c, own := begin(t, x.claimTokens["good"]), edKey(t)
		c.req.PublicKey, c.req.Signature = publicPEM(t, own.Public()), proof(t, own, c.req.Challenge, c.e.nonce)
		return c.e.ask(c.req)
	})
	refused("challenge: with a later end", fleet.CodeUnauthorized, func(t *testing.T) protocol.EnrollReply {
		c := begin(t, x.claimTokens["good"])
		b, err := base64.RawURLEncoding.DecodeString(c.req.Challenge)
		if err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		c.req.Challenge = base64.RawURLEncoding.EncodeToString(b)
		c.req.Signature = proof(t, c.key, c.req.Challenge, c.e.nonce)
		return c.e.ask(c.req)
	})
	refused("challenge: made up", fleet.CodeUnauthorized, func(t *testing.T) protocol.EnrollReply {
		c := begin(t, x.claimTokens["good"])
		c.req.Challenge = base64.RawURLEncoding.EncodeToString(make([]byte, 56))
		c.req.Signature = proof(t, c.key, c.req.Challenge, c.e.nonce)
		return c.e.ask(c.req)
	})
	known := func(d *device, serial string) func(t *testing.T) protocol.EnrollReply {
		return func(t *testing.T) protocol.EnrollReply {
			e := x.enrol(t)
			req := protocol.EnrollRequest{PublicKey: publicPEM(t, d.key.Public()), Token: x.claimTokens["good"], Serial: serial}
			req.Challenge = e.ask(req).Challenge
			req.Signature = proof(t, d.key, req.Challenge, e.nonce)
			return e.ask(req)
		}
	}
	refused("key: a revoked one", fleet.CodeForbidden, known(x.revoked, ""))
	return list
}

// weakRSA is a public key of bits (0: of a good length) and exponent e.
func weakRSA(t *testing.T, bits uint, e int) *rsa.PublicKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak := k.PublicKey
	if weak.E = e; bits > 0 {
		weak.N = k.N.Rsh(k.N, 2048-bits)
	}
	return &weak
}

func privatePEM(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(edKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func curvePEM(t *testing.T, c elliptic.Curve) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return publicPEM(t, &k.PublicKey)
}

package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// keys holds one key of each kind: RSA takes long enough to make that all
// tests share them.
var keys = sync.OnceValue(func() map[string]PrivateKey {
	out := map[string]PrivateKey{}
	for _, kind := range []string{KindEd25519, KindP256, KindRSA2048, KindRSA3072, KindRSA4096} {
		key, err := Generate(kind)
		if err != nil {
			panic(fmt.Errorf("generate %s: %w", kind, err))
		}
		out[kind] = key
	}
	return out
})

func TestEveryKindOfKeySurvivesPEMAndHasItsType(t *testing.T) {
	t.Parallel()
	want := map[string]KeyType{
		KindEd25519: TypeEd25519, KindP256: TypeP256,
		KindRSA2048: TypeRSA, KindRSA3072: TypeRSA, KindRSA4096: TypeRSA,
	}
	for kind, key := range keys() {
		private, err := key.PEM()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParsePrivateKeyPEM(private)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		public, err := ParsePublicKeyPEM(key.Public().PEM())
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if !again.Public().Equal(public) || public.Type() != want[kind] {
			t.Errorf("%s: came back as %s %s", kind, public.Type(), public.Fingerprint())
		}
		if len(public.Hash()) != 64 || !strings.HasPrefix(public.Fingerprint(), "SHA256:") || len(public.Fingerprint()) != 50 {
			t.Errorf("%s: hash %q, fingerprint %q", kind, public.Hash(), public.Fingerprint())
		}
	}
}

func TestNoKeyIsRefusedEverywhere(t *testing.T) {
	t.Parallel()
	var private PrivateKey
	if _, err := private.PEM(); err == nil {
		t.Error("encoded no key")
	}
	if _, err := SignEnroll(private, "c", "n"); err == nil {
		t.Error("signed with no key")
	}
	if _, err := MintDeviceToken(private, "d", "f", time.Now()); err == nil {
		t.Error("minted with no key")
	}
	if err := VerifyDeviceToken("x.y.z", PublicKey{}, "d", "f", time.Now()); err == nil {
		t.Error("verified a token with no key")
	}
	if err := VerifyEnroll(PublicKey{}, "c", "n", nil); err == nil {
		t.Error("verified an enrolment with no key")
	}
	if (PublicKey{}).Equal(PublicKey{}) {
		t.Error("no key equals no key")
	}
	if _, err := Generate("dsa"); err == nil || !strings.Contains(err.Error(), `"dsa"`) {
		t.Errorf("Generate(dsa) = %v", err)
	}
}

func TestAPrivateKeyNeverPrintsItself(t *testing.T) {
	t.Parallel()
	key := keys()[KindEd25519]
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(format, key); got != key.String() {
			t.Errorf("%s prints %q", format, got)
		}
	}
}

func block(typ string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}

func spki(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PUBLIC KEY", der)
}

func TestPublicKeysThatNoDeviceMayHaveAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	good := keys()[KindEd25519].Public().PEM()
	private, err := keys()[KindP256].PEM()
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	modulus := func(bits uint) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return n.SetBit(n, 0, 1)
	}
	for name, tc := range map[string]struct {
		pem  []byte
		want string
		code fleet.Code
	}{
		"RSA-1024":           {spki(t, &rsa.PublicKey{N: modulus(1024), E: 65537}), "RSA of 1024 bits", fleet.CodeUnsupported},
		"RSA-2047":           {spki(t, &rsa.PublicKey{N: modulus(2047), E: 65537}), "RSA of 2047 bits", fleet.CodeUnsupported},
		"RSA-8192":           {spki(t, &rsa.PublicKey{N: modulus(8192), E: 65537}), "RSA of 8192 bits", fleet.CodeUnsupported},
		"RSA e = 3":          {spki(t, &rsa.PublicKey{N: modulus(2048), E: 3}), "exponent 3", fleet.CodeUnsupported},
		"P-224":              {spki(t, &p224.PublicKey), "ECDSA on P-224", fleet.CodeUnsupported},
		"P-384":              {spki(t, &p384.PublicKey), "ECDSA on P-384", fleet.CodeUnsupported},
		"private key":        {private, "private key", fleet.CodeInvalid},
		"PKCS#1":             {block("RSA PUBLIC KEY", []byte{1}), `"RSA PUBLIC KEY"`, fleet.CodeInvalid},
		"certificate":        {block("CERTIFICATE", []byte{1}), `"CERTIFICATE"`, fleet.CodeInvalid},
		"empty":              {nil, "not PEM", fleet.CodeInvalid},
		"garbage":            {[]byte("ssh-ed25519 AAAA"), "not PEM", fleet.CodeInvalid},
		"garbage in PEM":     {block("PUBLIC KEY", []byte("garbage")), "SubjectPublicKeyInfo", fleet.CodeInvalid},
		"two blocks":         {append(append([]byte{}, good...), good...), "data after", fleet.CodeInvalid},
		"text before":        {append([]byte("hello\n"), good...), "data before", fleet.CodeInvalid},
		"megabyte of spaces": {append(bytes.Repeat([]byte(" "), 1<<20), good...), "bytes of PEM", fleet.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParsePublicKeyPEM(tc.pem)
			if err == nil || !strings.Contains(err.Error(), tc.want) || fleet.ErrorCode(err) != tc.code {
				t.Fatalf("got %v, want %s with %q", err, tc.code, tc.want)
			}
		})
	}
}

func FuzzParsePublicKeyPEMAcceptsOnlyWhatItWritesBack(f *testing.F) {
	f.Add(keys()[KindEd25519].Public().PEM())
	f.Add(keys()[KindP256].Public().PEM())
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := ParsePublicKeyPEM(data)
		if err != nil {
			return
		}
		again, err := ParsePublicKeyPEM(key.PEM())
		if err != nil || again.Hash() != key.Hash() {
			t.Fatalf("accepted %q but not its own encoding: %v", data, err)
		}
	})
}

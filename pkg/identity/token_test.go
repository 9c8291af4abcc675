package identity

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/fleet"
)

var now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

func TestATokenOfEveryKindOfKeyIsAcceptedByThatKeyOnly(t *testing.T) {
	t.Parallel()
	for kind, key := range keys() {
		token, err := MintDeviceToken(key, "dev1", "fleet1", now)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		for other, otherKey := range keys() {
			err := VerifyDeviceToken(token, otherKey.Public(), "dev1", "fleet1", now)
			if (err == nil) != (kind == other) {
				t.Errorf("token of %s checked with %s: %v", kind, other, err)
			}
		}
	}
}

// sign makes a token as a careless or hostile device would.
func sign(t *testing.T, method jwt.SigningMethod, key any, header, claims map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(method, jwt.MapClaims(claims))
	for k, v := range header {
		token.Header[k] = v
	}
	s, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDeviceTokensThatBreakARuleAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	ed, rsaKey := keys()[KindEd25519], keys()[KindRSA2048]
	with := func(changes map[string]any) map[string]any {
		claims := map[string]any{"sub": "dev1", "aud": "fleet1", "iat": now.Unix(), "exp": now.Add(TokenLifetime).Unix()}
		for k, v := range changes {
			if v == nil {
				delete(claims, k)
			} else {
				claims[k] = v
			}
		}
		return claims
	}
	signed := func(changes map[string]any) string {
		return sign(t, jwt.SigningMethodEdDSA, ed.signer, nil, with(changes))
	}
	flip := func(token string) string {
		i := strings.LastIndex(token, ".") + 5
		c := byte('A')
		if token[i] == c {
			c = 'B'
		}
		return token[:i] + string(c) + token[i+1:]
	}
	otherClaims := func(token string) string {
		parts := strings.Split(token, ".")
		raw, err := json.Marshal(with(map[string]any{"sub": "dev2"}))
		if err != nil {
			t.Fatal(err)
		}
		parts[1] = base64.RawURLEncoding.EncodeToString(raw)
		return strings.Join(parts, ".")
	}
	for name, tc := range map[string]struct {
		token string
		key   PrivateKey
		want  string
	}{
		"alg none":               {sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil, with(nil)), ed, "signing method none"},
		"HS256 on an RSA key":    {sign(t, jwt.SigningMethodHS256, rsaKey.Public().PEM(), nil, with(nil)), rsaKey, "signing method HS256"},
		"HS256 on an Ed25519":    {sign(t, jwt.SigningMethodHS256, ed.Public().PEM(), nil, with(nil)), ed, "signing method HS256"},
		"PS256 on an RSA key":    {sign(t, jwt.SigningMethodPS256, rsaKey.signer, nil, with(nil)), rsaKey, "signing method PS256"},
		"crit":                   {sign(t, jwt.SigningMethodEdDSA, ed.signer, map[string]any{"crit": []string{"b64"}}, with(nil)), ed, "critical"},
		"another device":         {signed(map[string]any{"sub": "dev2"}), ed, `sub is "dev2"`},
		"no sub":                 {signed(map[string]any{"sub": nil}), ed, `sub is ""`},
		"another fleet":          {signed(map[string]any{"aud": "fleet2"}), ed, "aud is"},
		"two fleets":             {signed(map[string]any{"aud": []string{"fleet1", "fleet2"}}), ed, "aud is"},
		"no aud":                 {signed(map[string]any{"aud": nil}), ed, "aud is"},
		"no exp":                 {signed(map[string]any{"exp": nil}), ed, "no exp"},
		"no iat":                 {signed(map[string]any{"iat": nil}), ed, "no iat"},
		"expired":                {signed(map[string]any{"exp": now.Add(-TokenSkew - time.Second).Unix()}), ed, "expired at"},
		"exp above 24 h":         {signed(map[string]any{"exp": now.Add(MaxTokenLifetime + TokenSkew + time.Second).Unix()}), ed, "more than 24h"},
		"exp past all calendars": {signed(map[string]any{"exp": 1e300}), ed, "exp"},
		"exp as text":            {signed(map[string]any{"exp": "tomorrow"}), ed, "NumericData"},
		"issued in the future":   {signed(map[string]any{"iat": now.Add(TokenSkew + time.Second).Unix()}), ed, "iat"},
		"not yet valid":          {signed(map[string]any{"nbf": now.Add(TokenSkew + time.Second).Unix()}), ed, "nbf"},
		"one bit flipped":        {flip(signed(nil)), ed, "device token"},
		"claims exchanged":       {otherClaims(signed(nil)), ed, "signature is invalid"},
		"empty":                  {"", ed, "malformed"},
		"two segments":           {"a.b", ed, "malformed"},
		"enormous":               {strings.Repeat("a", 1<<20), ed, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := VerifyDeviceToken(tc.token, tc.key.Public(), "dev1", "fleet1", now)
			if err == nil || !strings.Contains(err.Error(), tc.want) || fleet.ErrorCode(err) != fleet.CodeUnauthorized {
				t.Fatalf("got %v, want %s with %q", err, fleet.CodeUnauthorized, tc.want)
			}
		})
	}
}

func TestATokenIsAcceptedExactlyWithinItsLifetimeAndTheSkew(t *testing.T) {
	t.Parallel()
	key := keys()[KindEd25519]
	rapid.Check(t, func(t *rapid.T) {
		offset := time.Duration(rapid.Int64Range(-3600, 3600).Draw(t, "clock offset in s")) * time.Second
		lifetime := time.Duration(rapid.Int64Range(-3600, 2*86400).Draw(t, "lifetime in s")) * time.Second
		issued := now.Add(offset)
		expires := issued.Add(lifetime)
		token, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.RegisteredClaims{
			Subject: "dev1", Audience: jwt.ClaimStrings{"fleet1"},
			IssuedAt: jwt.NewNumericDate(issued), ExpiresAt: jwt.NewNumericDate(expires),
		}).SignedString(key.signer)
		if err != nil {
			t.Fatal(err)
		}
		want := offset <= 10*time.Minute && expires.Sub(now) >= -10*time.Minute && expires.Sub(now) <= 24*time.Hour+10*time.Minute
		if err := VerifyDeviceToken(token, key.Public(), "dev1", "fleet1", now); (err == nil) != want {
			t.Fatalf("offset %s, lifetime %s: %v, want accepted = %t", offset, lifetime, err, want)
		}
	})
}

func BenchmarkVerifyDeviceToken(b *testing.B) {
	for kind, key := range keys() {
		token, err := MintDeviceToken(key, "dev1", "fleet1", now)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				if err := VerifyDeviceToken(token, key.Public(), "dev1", "fleet1", now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package identity

import (
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/kernexhq/kernex/pkg/fleet"
)

const (
	// TokenLifetime is how long a device's token lives. It is minted for one
	// CONNECT, and an open connection outlives it.
	TokenLifetime = 5 * time.Minute
	// MaxTokenLifetime is the furthest expiry that is accepted: devices that
	// cannot mint on every CONNECT may take a day, a leaked token lives no longer.
	MaxTokenLifetime = 24 * time.Hour
	// TokenSkew is how far the device's clock and ours may differ.
	TokenSkew = 10 * time.Minute
	// maxToken bounds what is parsed. With an RSA-4096 signature and the longest
	// id a token takes about 1 KB.
	maxToken = 4 << 10
)

// MintDeviceToken returns the compact JWS with which a device connects: aud is
// the fleet, sub the device, issued now, expiring after TokenLifetime, signed
// with the algorithm of the key's type.
func MintDeviceToken(key PrivateKey, deviceID, fleetName string, now time.Time) (string, error) {
	if key.signer == nil {
		return "", fmt.Errorf("mint device token: %w", errNoKey)
	}
	token, err := jwt.NewWithClaims(key.public.method(), jwt.RegisteredClaims{
		Subject:   deviceID,
		Audience:  jwt.ClaimStrings{fleetName},
		IssuedAt:  jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(now.Add(TokenLifetime)),
	}).SignedString(key.signer)
	if err != nil {
		return "", fmt.Errorf("mint device token: %w", err)
	}
	return token, nil
}

// VerifyDeviceToken reports whether token was signed by the device's stored
// key for this fleet and is valid now. Every refusal is
// fleet.CodeUnauthorized with the reason; whoever talks to the device logs the
// reason and does not send it.
func VerifyDeviceToken(token string, key PublicKey, deviceID, fleetName string, now time.Time) error {
	if key.typ == "" || deviceID == "" || fleetName == "" {
		return fmt.Errorf("verify device token: no key, device or fleet to check against")
	}
	if len(token) > maxToken {
		return fleet.Errorf(fleet.CodeUnauthorized, "device token: %d bytes, want at most %d", len(token), maxToken)
	}
	method := key.method()
	var claims jwt.RegisteredClaims
	// Times are checked below: the parser has one leeway for all and no upper
	// bound for exp.
	parser := jwt.NewParser(jwt.WithValidMethods([]string{method.Alg()}), jwt.WithoutClaimsValidation(), jwt.WithStrictDecoding())
	_, err := parser.ParseWithClaims(token, &claims, func(t *jwt.Token) (any, error) {
		if _, ok := t.Header["crit"]; ok {
			return nil, errors.New("critical extensions are not supported")
		}
		return key.key, nil
	})
	if err != nil {
		return fleet.Errorf(fleet.CodeUnauthorized, "device token: %v", err)
	}
	if err := checkClaims(claims, deviceID, fleetName, now); err != nil {
		return fleet.Errorf(fleet.CodeUnauthorized, "device token: %v", err)
	}
	return nil
}

func checkClaims(c jwt.RegisteredClaims, deviceID, fleetName string, now time.Time) error {
	switch {
	case c.Subject != deviceID:
		return fmt.Errorf("sub is %q, want %q", c.Subject, deviceID)
	case len(c.Audience) != 1 || c.Audience[0] != fleetName:
		return fmt.Errorf("aud is %q, want %q", c.Audience, fleetName)
	case c.IssuedAt == nil:
		return errors.New("no iat")
	case c.ExpiresAt == nil:
		return errors.New("no exp")
	case now.After(c.ExpiresAt.Add(TokenSkew)):
		return fmt.Errorf("expired at %s, it is %s", stamp(c.ExpiresAt.Time), stamp(now))
	case c.ExpiresAt.After(now.Add(MaxTokenLifetime + TokenSkew)):
		return fmt.Errorf("exp %s is more than %s ahead of %s", stamp(c.ExpiresAt.Time), MaxTokenLifetime, stamp(now))
	case c.IssuedAt.After(now.Add(TokenSkew)):
		return fmt.Errorf("iat %s is ahead of %s", stamp(c.IssuedAt.Time), stamp(now))
	case c.NotBefore != nil && c.NotBefore.After(now.Add(TokenSkew)):
		return fmt.Errorf("nbf %s is ahead of %s", stamp(c.NotBefore.Time), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

package identity

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/fleet"
)

func TestProofOfPossessionHoldsForEveryKindOfKey(t *testing.T) {
	t.Parallel()
	for kind, key := range keys() {
		sig, err := SignEnroll(key, "challenge", "nonce")
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if err := VerifyEnroll(key.Public(), "challenge", "nonce", sig); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		for other, otherKey := range keys() {
			if other == kind {
				continue
			}
			if err := VerifyEnroll(otherKey.Public(), "challenge", "nonce", sig); fleet.ErrorCode(err) != fleet.CodeBadSignature {
				t.Errorf("proof of %s taken for %s: %v", kind, other, err)
			}
		}
	}
}

func TestAProofVerifiesForNoOtherChallengeOrNonce(t *testing.T) {
	t.Parallel()
	key := keys()[KindEd25519]
	text := rapid.StringMatching(`[ab\x00]{0,4}`) // short and alike, so that shifted boundaries come up
	rapid.Check(t, func(t *rapid.T) {
		c1, n1 := text.Draw(t, "challenge"), text.Draw(t, "nonce")
		c2, n2 := text.Draw(t, "other challenge"), text.Draw(t, "other nonce")
		sig, err := SignEnroll(key, c1, n1)
		if err != nil {
			t.Fatal(err)
		}
		want := c1 == c2 && n1 == n2
		if err := VerifyEnroll(key.Public(), c2, n2, sig); (err == nil) != want {
			t.Fatalf("(%q, %q) checked as (%q, %q): %v", c1, n1, c2, n2, err)
		}
	})
}

func TestAChangedProofIsRefused(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{KindEd25519, KindP256, KindRSA2048} {
		key := keys()[kind]
		sig, err := SignEnroll(key, "challenge", "nonce")
		if err != nil {
			t.Fatal(err)
		}
		rapid.Check(t, func(t *rapid.T) {
			changed := append([]byte{}, sig...)
			changed[rapid.IntRange(0, len(sig)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			changed = changed[:rapid.SampledFrom([]int{0, len(sig) - 1, len(sig)}).Draw(t, "length")]
			if VerifyEnroll(key.Public(), "challenge", "nonce", changed) == nil {
				t.Fatalf("%s: accepted a changed signature", kind)
			}
		})
	}
}

func TestATokenIsNoProofOfPossession(t *testing.T) {
	t.Parallel()
	key := keys()[KindEd25519]
	token, err := MintDeviceToken(key, "challenge", "nonce", now)
	if err != nil {
		t.Fatal(err)
	}
	if VerifyEnroll(key.Public(), "challenge", "nonce", []byte(token)) == nil {
		t.Fatal("accepted")
	}
}

package postgres_test

import (
	"crypto/sha256"
	"errors"
	"sync"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
)

func enrollment(key, token string) fleet.Enrollment {
	hash := sha256.Sum256([]byte(key))
	e := fleet.Enrollment{
		Registration: fleet.Registration{DeviceType: "camera", Serial: "sn-" + key, HardwareMetadata: map[string]any{"cpu": "arm"}},
		PublicKeyDER: []byte(key), KeyHash: hash[:], KeyType: "ed25519", Nonce: "nonce",
	}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		e.TokenHash = sum[:]
	}
	return e
}

func enroll(t testing.TB, s *looptest.Scene, e fleet.Enrollment) (fleet.Enrolled, error) {
	t.Helper()
	return s.DB.Enroll(t.Context(), e, func(id string) []byte { return []byte(id) }, func() bool { return true })
}

func claimToken(t testing.TB, s *looptest.Scene, n fleet.NewEnrollmentToken) (id, secret string) {
	t.Helper()
	tok, secret, err := s.DB.CreateEnrollmentToken(t.Context(), n, fleet.System)
	if err != nil {
		t.Fatal(err)
	}
	return tok.ID, secret
}

func uses(t testing.TB, s *looptest.Scene, id string) int {
	return value[int](t, s, `SELECT uses FROM enrollment_tokens WHERE id = $1`, id)
}

func TestRegisterIsIdempotentOnTheKey(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	id, secret := claimToken(t, s, fleet.NewEnrollmentToken{MaxUses: 1, AutoApprove: true, Labels: fleet.Labels{"site": "berlin"}})
	first, err := enroll(t, s, enrollment("k1", secret))
	if err != nil || !first.New || first.Credential != fleet.CredentialActive || first.Config.Version != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	again, err := enroll(t, s, enrollment("k1", secret))
	if err != nil || again.New || again.DeviceID != first.DeviceID {
		t.Fatalf("%+v, %v", again, err)
	}
	if n := uses(t, s, id); n != 1 {
		t.Fatalf("the token was spent %d times", n)
	}
	d := device(t, s, first.DeviceID)
	if d.Labels["site"] != "berlin" || d.Serial != "sn-k1" || d.HardwareMetadata["cpu"] != "arm" {
		t.Fatalf("device is %+v", d)
	}
	if _, err := enroll(t, s, enrollment("k2", secret)); fleet.ErrorCode(err) != fleet.CodeUnauthorized {
		t.Fatalf("a spent token: %v", err)
	}
}

func TestConcurrentEnrolmentsOfOneKeySpendOneUse(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	id, secret := claimToken(t, s, fleet.NewEnrollmentToken{MaxUses: 3, AutoApprove: true})
	var wg sync.WaitGroup
	ids, errs := make([]string, 16), make([]error, 16)
	for i := range ids {
		wg.Go(func() {
			var got fleet.Enrolled
			got, errs[i] = enroll(t, s, enrollment("same", secret))
			ids[i] = got.DeviceID
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, got := range ids {
		if got != ids[0] {
			t.Fatalf("one key became %v", ids)
		}
	}
	if n := uses(t, s, id); n != 1 {
		t.Fatalf("the token was spent %d times", n)
	}
}

func TestClaimTokenCountsOnlyWhileItIsGood(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	for name, spoil := range map[string]string{
		"revoked": `UPDATE enrollment_tokens SET revoked_at = now() WHERE id = $1`,
		"expired": `UPDATE enrollment_tokens SET expires_at = now() - interval '1 second' WHERE id = $1`,
		"serials": `UPDATE enrollment_tokens SET serials = '{sn-other}' WHERE id = $1`,
		"used up": `UPDATE enrollment_tokens SET uses = max_uses WHERE id = $1`,
	} {
		id, secret := claimToken(t, s, fleet.NewEnrollmentToken{MaxUses: 2, AutoApprove: true})
		run(t, s, spoil, id)
		if _, err := enroll(t, s, enrollment(name, secret)); fleet.ErrorCode(err) != fleet.CodeUnauthorized {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := enroll(t, s, enrollment("unknown", "ke_nonsense")); fleet.ErrorCode(err) != fleet.CodeUnauthorized {
		t.Errorf("unknown: %v", err)
	}
	if n := value[int](t, s, `SELECT count(*) FROM devices`); n != 0 {
		t.Fatalf("%d devices were made", n)
	}
}

func TestDeviceWithoutATokenWaitsForApproval(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	got, err := enroll(t, s, enrollment("k", ""))
	if err != nil || got.Credential != fleet.CredentialPending {
		t.Fatalf("%+v, %v", got, err)
	}
	if again, err := enroll(t, s, enrollment("k", "")); err != nil || again.DeviceID != got.DeviceID || again.Credential != fleet.CredentialPending {
		t.Fatalf("%+v, %v", again, err)
	}
	_, secret := claimToken(t, s, fleet.NewEnrollmentToken{MaxUses: 1, AutoApprove: true})
	if claimed, err := enroll(t, s, enrollment("k", secret)); err != nil || claimed.DeviceID != got.DeviceID || claimed.Credential != fleet.CredentialActive {
		t.Fatalf("claimed: %+v, %v", claimed, err)
	}
	_, err = s.DB.Enroll(t.Context(), enrollment("k2", ""), func(string) []byte { return nil }, func() bool { return false })
	if fleet.ErrorCode(err) != fleet.CodeRateLimited {
		t.Fatalf("beyond the rate: %v", err)
	}
}

func TestPreregisteredKeyIsActiveAtOnce(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	e := enrollment("k", "")
	d, _, err := s.DB.RegisterDevice(t.Context(), fleet.Registration{Serial: e.Serial}, e.PublicKeyDER, e.KeyHash, e.KeyType, nil, fleet.System)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := enroll(t, s, e); err != nil || got.DeviceID != d.ID || got.Credential != fleet.CredentialActive {
		t.Fatalf("%+v, %v", got, err)
	}
	e.Serial = "stolen"
	if _, err := enroll(t, s, e); fleet.ErrorCode(err) != fleet.CodeForbidden {
		t.Fatalf("another serial: %v", err)
	}
}

func TestRevokedKeyIsRefused(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	_, secret := claimToken(t, s, fleet.NewEnrollmentToken{MaxUses: 2, AutoApprove: true})
	got, err := enroll(t, s, enrollment("k", secret))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.DB.SetCredential(t.Context(), got.DeviceID, "", fleet.CredentialRevoked, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	if _, err := enroll(t, s, enrollment("k", secret)); fleet.ErrorCode(err) != fleet.CodeForbidden {
		t.Fatalf("revoked key: %v", err)
	}
}

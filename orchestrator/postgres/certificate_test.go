package postgres_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
)

func TestACertificateIsRepeatedUntilHalfOfItsLife(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	id := s.Device()
	made := 0
	certify := func(issuer string, life time.Duration) fleet.Certificate {
		t.Helper()
		c, err := s.DB.CertifyDevice(t.Context(), id, issuer, func(der []byte, now time.Time) (fleet.Certificate, error) {
			if len(der) == 0 || time.Since(now).Abs() > time.Minute {
				t.Errorf("key of %d bytes at %s", len(der), now)
			}
			made++
			return fleet.Certificate{Serial: strconv.Itoa(made), Issuer: issuer, PEM: "pem " + strconv.Itoa(made), NotAfter: now.Add(life)}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := certify("a", time.Hour)
	if again := certify("a", time.Hour); again.PEM != "pem 1" || made != 1 || !again.NotAfter.Equal(first.NotAfter) {
		t.Errorf("the repeat is %+v of %d", again, made)
	}
	if n := value[int](t, s, `SELECT count(*) FROM audit WHERE action = 'device.certificate' AND subject = $1 AND after->>'serial' = '1'`, id); n != 1 || events(t, s, id, fleet.EventDeviceCertificate) != 1 {
		t.Errorf("%d audit rows, %d events", n, events(t, s, id, fleet.EventDeviceCertificate))
	}
	if other := certify("b", time.Hour); other.PEM != "pem 2" {
		t.Errorf("of another CA: %+v", other)
	}
	if n := value[int](t, s, `WITH u AS (UPDATE device_certificates SET issued_at = issued_at - interval '2 hours' WHERE serial = '1' RETURNING 1) SELECT count(*) FROM u`); n != 1 {
		t.Fatal("no such certificate")
	}
	if next := certify("a", time.Hour); next.PEM != "pem 3" {
		t.Errorf("after half of its life: %+v", next)
	}
}

func TestOnlyTheCertificatesOfRevokedDevicesThatHaveNotEndedAreRevoked(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	serial := map[string]string{}
	for i, name := range []string{"active", "revoked", "ended"} {
		id := s.Device()
		serial[name] = strconv.Itoa(i + 1)
		if _, err := s.DB.CertifyDevice(t.Context(), id, "a", func(_ []byte, now time.Time) (fleet.Certificate, error) {
			end := now.Add(time.Hour)
			if name == "ended" {
				end = now.Add(-time.Second)
			}
			return fleet.Certificate{Serial: serial[name], Issuer: "a", NotAfter: end}, nil
		}); err != nil {
			t.Fatal(err)
		}
		if name == "active" {
			continue
		}
		if _, err := s.DB.SetCredential(t.Context(), id, "", fleet.CredentialRevoked, nil, fleet.System); err != nil {
			t.Fatal(err)
		}
		if _, err := s.DB.CertifyDevice(t.Context(), id, "a", nil); fleet.ErrorCode(err) != fleet.CodeForbidden {
			t.Errorf("a certificate for a revoked device: %v", err)
		}
	}
	got, err := s.DB.RevokedCertificates(t.Context(), "a")
	if err != nil || len(got) != 1 || got[0].Serial != serial["revoked"] || time.Since(got[0].RevokedAt).Abs() > time.Minute {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := s.DB.RevokedCertificates(t.Context(), "b"); err != nil || len(got) != 0 {
		t.Errorf("of another CA: %+v, %v", got, err)
	}
}

package ingest_test

import (
	"context"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/ingest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// issuer certifies active devices as the real one does, with words for PEM.
type issuer struct{ e *env }

func (i issuer) Certify(ctx context.Context, id string) (certificate, ca string, err error) {
	c, err := i.e.DB.CertifyDevice(ctx, id, "ca", func([]byte, time.Time) (fleet.Certificate, error) {
		return fleet.Certificate{Serial: "1" + id, Issuer: "ca", PEM: "-----BEGIN CERTIFICATE-----\n" + id, NotAfter: time.Now().Add(time.Hour)}, nil
	})
	return c.PEM, "-----BEGIN CERTIFICATE-----\nca", err
}

func TestAnActiveDeviceGetsItsCertificateAtEnrolmentAndOverMQTT(t *testing.T) {
	t.Parallel()
	var is issuer
	e, _ := start(t, func(c *ingest.Config) { c.Certifier = &is })
	is.e = e
	_, secret, err := e.DB.CreateEnrollmentToken(t.Context(), fleet.NewEnrollmentToken{MaxUses: 1, AutoApprove: true}, fleet.System)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	got := e.ask(nonce, e.answer(key, nonce, protocol.EnrollRequest{PublicKey: string(key.Public().PEM()), Token: secret}))
	want := "-----BEGIN CERTIFICATE-----\n" + got.DeviceID
	if got.Error != nil || got.Certificate != want || got.CA == "" {
		t.Fatalf("reply is %+v", got)
	}
	e.send(got.DeviceID, protocol.KindRequest, protocol.Request{Want: protocol.WantCertificate})
	if ack := e.acks(got.DeviceID, 1)[0]; ack.Certificate != want || ack.Time == 0 {
		t.Errorf("ack is %+v", ack)
	}
}

func TestAPendingAndARevokedDeviceGetNoCertificate(t *testing.T) {
	t.Parallel()
	var is issuer
	e, _ := start(t, func(c *ingest.Config) { c.Certifier = &is })
	is.e = e
	key := newKey(t)
	pending := e.ask(nonce, e.answer(key, nonce, protocol.EnrollRequest{PublicKey: string(key.Public().PEM())}))
	if pending.Status != "pending" || pending.Certificate != "" || pending.CA != "" {
		t.Fatalf("reply is %+v", pending)
	}
	revoked := e.Device()
	if _, err := e.DB.SetCredential(t.Context(), revoked, "", fleet.CredentialRevoked, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	active := e.Device()
	for _, id := range []string{pending.DeviceID, revoked, active} {
		e.send(id, protocol.KindRequest, protocol.Request{Want: protocol.WantCertificate})
	}
	e.acks(active, 1)
	testkit.Eventually(t, 10*time.Second, func() bool {
		return e.count("kernex_ingest_dropped_total", "kind=request", "reason=refused") == 2
	})
	if n := len(e.Wire.On(e.Topics.Device(pending.DeviceID, protocol.KindAck))) + len(e.Wire.On(e.Topics.Device(revoked, protocol.KindAck))); n != 0 {
		t.Errorf("%d answers", n)
	}
}

package ingest_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/ingest"
	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/protocol"
)

const nonce = "0123456789abcdef0123456789abcdef"

// ask sends one enrolment request and returns the reply.
func (e *env) ask(n string, req protocol.EnrollRequest) protocol.EnrollReply {
	e.t.Helper()
	b, err := json.Marshal(req)
	if err != nil {
		e.t.Fatal(err)
	}
	topic := e.Topics.EnrollReply(n)
	had := len(e.Wire.On(topic))
	e.in.Receive(e.Topics.EnrollRequest(n), b)
	return looptest.Decode[protocol.EnrollReply](e.t, e.Wire.Await(e.t, topic, had+1)[had])
}

func (e *env) answer(key identity.PrivateKey, n string, req protocol.EnrollRequest) protocol.EnrollRequest {
	e.t.Helper()
	req.Challenge = e.ask(n, req).Challenge
	sig, err := identity.SignEnroll(key, req.Challenge, n)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Signature = base64.RawURLEncoding.EncodeToString(sig)
	return req
}

func newKey(t testing.TB) identity.PrivateKey {
	t.Helper()
	key, err := identity.Generate("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestDeviceEnrolsWithAProofOfItsKey(t *testing.T) {
	t.Parallel()
	e, _ := start(t)
	_, secret, err := e.DB.CreateEnrollmentToken(t.Context(), fleet.NewEnrollmentToken{MaxUses: 1, AutoApprove: true}, fleet.System)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	req := e.answer(key, nonce, protocol.EnrollRequest{PublicKey: string(key.Public().PEM()), DeviceType: "camera", Token: secret})
	first := e.ask(nonce, req)
	if first.Error != nil || first.Status != "active" || first.Fleet != "test" || first.CommandKey == "" || first.Config == nil || first.TrustMode != "open" {
		t.Fatalf("reply is %+v", first)
	}
	again := e.ask(nonce, req) // the reply was lost
	if again.DeviceID != first.DeviceID || again.RegistrationToken != first.RegistrationToken || again.RegistrationToken == "" {
		t.Fatalf("the repeat's reply is %+v, the first one %+v", again, first)
	}
	login, err := e.DB.DeviceLogin(t.Context(), first.DeviceID)
	if err != nil || login.Credential != fleet.CredentialActive {
		t.Fatalf("login is %+v, %v", login, err)
	}
	if got, err := identity.ParsePublicKeyDER(login.PublicKey); err != nil || !got.Equal(key.Public()) {
		t.Fatalf("stored key: %v", err)
	}
}

func TestEnrolmentWithoutAProofIsRefused(t *testing.T) {
	t.Parallel()
	e, _ := start(t)
	key, thief := newKey(t), newKey(t)
	good := e.answer(key, nonce, protocol.EnrollRequest{PublicKey: string(key.Public().PEM())})
	change := func(f func(*protocol.EnrollRequest)) protocol.EnrollRequest { r := good; f(&r); return r }
	for name, c := range map[string]struct {
		nonce string
		req   protocol.EnrollRequest
		code  fleet.Code
	}{
		"another connection": {"ffffffffffffffffffffffffffffffff", good, fleet.CodeUnauthorized},
		"another key":        {nonce, change(func(r *protocol.EnrollRequest) { r.PublicKey = string(thief.Public().PEM()) }), fleet.CodeUnauthorized},
		"no signature":       {nonce, change(func(r *protocol.EnrollRequest) { r.Signature = "" }), fleet.CodeBadSignature},
		"padded signature":   {nonce, change(func(r *protocol.EnrollRequest) { r.Signature += "=" }), fleet.CodeInvalid},
		"made-up challenge":  {nonce, change(func(r *protocol.EnrollRequest) { r.Challenge = "AAAA" }), fleet.CodeUnauthorized},
		"no key":             {nonce, protocol.EnrollRequest{}, fleet.CodeInvalid},
		"a private key":      {nonce, protocol.EnrollRequest{PublicKey: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}, fleet.CodeInvalid},
		"control characters": {nonce, change(func(r *protocol.EnrollRequest) { r.Serial = "a\nb" }), fleet.CodeInvalid},
		"an unknown token":   {nonce, change(func(r *protocol.EnrollRequest) { r.Token = "ke_wrong" }), fleet.CodeUnauthorized},
	} {
		if got := e.ask(c.nonce, c.req); got.Error == nil || got.Error.Code != c.code || got.DeviceID != "" {
			t.Errorf("%s: %+v, want %s", name, got, c.code)
		}
	}
	if got := e.ask(nonce, good); got.Error != nil || got.Status != "pending" {
		t.Fatalf("the good request: %+v", got)
	}
}

func TestNewDevicesWithoutATokenAreBounded(t *testing.T) {
	t.Parallel()
	e, _ := start(t, func(c *ingest.Config) { c.PendingRate = 0.001 })
	limited := 0
	for i := range 102 { // the burst is 100
		key := newKey(t)
		n := fmt.Sprintf("%032x", i)
		got := e.ask(n, e.answer(key, n, protocol.EnrollRequest{PublicKey: string(key.Public().PEM())}))
		if got.Error != nil && got.Error.Code == fleet.CodeRateLimited {
			limited++
		}
	}
	if limited != 2 {
		t.Fatalf("%d of 102 were refused", limited)
	}
}

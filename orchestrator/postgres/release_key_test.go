package postgres_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func signingKey(t testing.TB) bundle.SigningKey {
	t.Helper()
	k, err := bundle.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// newKey asks for a release key that by, if any, has signed.
func newKey(t testing.TB, k bundle.SigningKey, by *bundle.SigningKey) fleet.NewReleaseKey {
	t.Helper()
	n := fleet.NewReleaseKey{File: string(k.Public().File())}
	if by != nil {
		sig, err := by.Sign([]byte(n.File), time.Now(), "key change")
		if err != nil {
			t.Fatal(err)
		}
		n.Signature = string(sig)
	}
	return n
}

func addKey(t testing.TB, s *looptest.Scene, n fleet.NewReleaseKey) fleet.ReleaseKey {
	t.Helper()
	k, created, err := s.DB.AddReleaseKey(t.Context(), n, fleet.System)
	if err != nil || !created {
		t.Fatalf("add release key: %v, %v", created, err)
	}
	return k
}

// upload stores a bundle, signed by key if there is one.
func upload(t testing.TB, s *looptest.Scene, version string, key *bundle.SigningKey) (fleet.Bundle, error) {
	t.Helper()
	manifest := fmt.Sprintf(`{"schema":1,"name":"edge","version":%q,"counter":1}`, version)
	release, checksum := sha256.Sum256([]byte(manifest)), sha256.Sum256([]byte(manifest+fleet.NewID("x")))
	b := fleet.Bundle{ID: fleet.NewID("bun"), Name: "edge", Version: version, Release: hex.EncodeToString(release[:]), Checksum: hex.EncodeToString(checksum[:]),
		Size: 1000, ObjectKey: "bundles/" + hex.EncodeToString(checksum[:]), Manifest: json.RawMessage(manifest), PartSize: 1 << 20, Parts: []string{}}
	if key != nil {
		sig, err := key.Sign([]byte(manifest), time.Now(), "file:manifest.json")
		if err != nil {
			t.Fatal(err)
		}
		b.Signature = string(sig)
	}
	got, _, err := s.DB.CreateBundle(t.Context(), b, fleet.System)
	return got, err
}

// trustCommand is the open trust command of a device.
func trustCommand(t testing.TB, s *looptest.Scene, device string) (id string, body protocol.Trust) {
	t.Helper()
	id = value[string](t, s, `SELECT id FROM commands WHERE device_id = $1 AND type = 'trust' AND status = 'open'`, device)
	if err := json.Unmarshal([]byte(value[string](t, s, `SELECT body::text FROM commands WHERE id = $1`, id)), &body); err != nil {
		t.Fatal(err)
	}
	if err := body.Validate(); err != nil {
		t.Error(err)
	}
	return id, body
}

func openTrust(t testing.TB, s *looptest.Scene, device string) int {
	t.Helper()
	return value[int](t, s, `SELECT count(*) FROM commands WHERE device_id = $1 AND type = 'trust' AND status = 'open'`, device)
}

func deploy(t testing.TB, s *looptest.Scene, b fleet.Bundle, device string) error {
	t.Helper()
	_, err := s.DB.CreateDeployment(t.Context(), fleet.DeploymentRequest{Bundle: b.Name, Version: b.Version, Devices: []string{device}}, fleet.System)
	return err
}

func wantCode(t testing.TB, what string, err error, code fleet.Code) {
	t.Helper()
	if fleet.ErrorCode(err) != code {
		t.Errorf("%s: %v, want %q", what, err, code)
	}
}

func TestTheFirstReleaseKeyMakesSignaturesRequired(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	key, foreign, device := signingKey(t), signingKey(t), s.Online()
	old, err := upload(t, s, "1.0.0", &foreign)
	if err != nil || old.SignedBy != "" {
		t.Fatalf("in mode open: %+v, %v", old, err)
	}
	wantCode(t, "deploy in mode open", deploy(t, s, old, device), "")
	added := addKey(t, s, newKey(t, key, nil))
	all, err := s.DB.ReleaseKeys(t.Context())
	if err != nil || all.Mode != fleet.TrustRequired || len(all.Items) != 1 || added.ID != key.Public().ID() {
		t.Fatalf("%+v, %v", all, err)
	}
	wantCode(t, "deploy of what nobody signed", deploy(t, s, old, device), fleet.CodeBadSignature)
	_, err = s.DB.PlanDeployment(t.Context(), fleet.DeploymentRequest{Bundle: "edge", Version: "1.0.0", Devices: []string{device}})
	wantCode(t, "plan", err, fleet.CodeBadSignature)
	_, err = upload(t, s, "1.0.0", nil)
	wantCode(t, "unsigned upload of a known release", err, fleet.CodeBadSignature)
	for what, k := range map[string]*bundle.SigningKey{"unsigned": nil, "foreign": &foreign} {
		_, err := upload(t, s, "2.0.0", k)
		wantCode(t, what, err, fleet.CodeBadSignature)
	}
	if n := value[int](t, s, `SELECT count(*) FROM bundles`); n != 1 {
		t.Errorf("%d bundles", n)
	}
	// The signature that comes with a known release is added to it.
	again, err := upload(t, s, "1.0.0", &key)
	if err != nil || again.ID != old.ID || again.SignedBy != key.Public().ID() {
		t.Fatalf("%+v, %v", again, err)
	}
	wantCode(t, "deploy of a release that was signed later", deploy(t, s, again, device), "")
	if n := value[int](t, s, `SELECT count(*) FROM audit WHERE action IN ('release_key.add', 'bundle.sign')`); n != 2 {
		t.Errorf("%d audit rows", n)
	}
}

func TestReleaseKeysAreAddedByKeysThatCountAndRevokedForGood(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a, b, thief, device := signingKey(t), signingKey(t), signingKey(t), s.Online()
	addKey(t, s, newKey(t, a, nil))
	for what, n := range map[string]fleet.NewReleaseKey{"unsigned": newKey(t, thief, nil), "by itself": newKey(t, thief, &thief)} {
		_, _, err := s.DB.AddReleaseKey(t.Context(), n, fleet.System)
		wantCode(t, what, err, fleet.CodeBadSignature)
	}
	_, _, err := s.DB.AddReleaseKey(t.Context(), fleet.NewReleaseKey{File: "RWrubbish"}, fleet.System)
	wantCode(t, "rubbish", err, fleet.CodeInvalid)
	wantCode(t, "the last key", s.DB.RevokeReleaseKey(t.Context(), a.Public().ID(), fleet.System), fleet.CodeConflict)
	wantCode(t, "no key", s.DB.RevokeReleaseKey(t.Context(), "0123456789abcdef", fleet.System), fleet.CodeNotFound)
	if k := addKey(t, s, newKey(t, b, &a)); k.SignedBy != a.Public().ID() {
		t.Errorf("%+v", k)
	}
	if _, created, err := s.DB.AddReleaseKey(t.Context(), newKey(t, b, &a), fleet.System); created || err != nil {
		t.Errorf("the same key again: %v, %v", created, err)
	}
	bundleA, err := upload(t, s, "1.0.0", &a)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, "revoke", s.DB.RevokeReleaseKey(t.Context(), a.Public().ID(), fleet.System), "")
	wantCode(t, "revoke again", s.DB.RevokeReleaseKey(t.Context(), a.Public().ID(), fleet.System), "")
	wantCode(t, "deploy of what a revoked key signed", deploy(t, s, bundleA, device), fleet.CodeBadSignature)
	_, _, err = s.DB.AddReleaseKey(t.Context(), newKey(t, a, &b), fleet.System)
	wantCode(t, "a revoked key again", err, fleet.CodeConflict)
	_, _, err = s.DB.AddReleaseKey(t.Context(), newKey(t, thief, &a), fleet.System)
	wantCode(t, "a key by a revoked one", err, fleet.CodeBadSignature)
	again, err := upload(t, s, "1.0.0", &b)
	if err != nil || again.SignedBy != b.Public().ID() {
		t.Fatalf("%+v, %v", again, err)
	}
	wantCode(t, "deploy of what the new key signed", deploy(t, s, again, device), "")
	_, body := trustCommand(t, s, device)
	if len(body.Keys) != 2 || body.Keys[0].Signature != "" || body.Keys[1].Signature == "" || !slices.Equal(body.Revoked, []string{a.Public().ID()}) {
		t.Errorf("%+v", body)
	}
}

func TestADeviceIsToldWhatToTrustUntilItReportsIt(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	key := signingKey(t)
	knows, knew, away := s.Online(), s.Online(), s.Device()
	addKey(t, s, newKey(t, key, nil))
	for _, d := range []string{knows, knew, away} {
		if openTrust(t, s, d) != 1 {
			t.Errorf("device %s is not told", d)
		}
	}
	report := func(d string, session int64, mode string, ids ...string) {
		t.Helper()
		st := looptest.State(session)
		st.TrustMode, st.ReleaseKeys = mode, ids
		if _, err := s.DB.ApplyState(t.Context(), d, st, looptest.Allow); err != nil {
			t.Fatal(err)
		}
	}
	end := func(d string, state fleet.TargetState) {
		t.Helper()
		id, _ := trustCommand(t, s, d)
		if ack := s.Report(d, protocol.Result{Command: id, Attempt: 1, State: state}); ack == nil || !ack.Accepted {
			t.Fatalf("%+v", ack)
		}
	}
	end(knows, fleet.TargetSucceeded)
	report(knows, 2, fleet.TrustRequired, key.Public().ID())
	if openTrust(t, s, knows) != 0 {
		t.Error("a device that trusts what it should is told again")
	}
	if got := value[string](t, s, `SELECT trust_mode || ' ' || release_keys FROM device_status WHERE device_id = $1`, knows); got != "required "+key.Public().ID() {
		t.Errorf("stored: %q", got)
	}
	// One that refuses is not asked without end, but again when an hour has passed.
	end(knew, fleet.TargetRejected)
	report(knew, 2, fleet.TrustRequired, "0123456789abcdef")
	if openTrust(t, s, knew) != 0 {
		t.Error("a device that has just refused is asked again")
	}
	run(t, s, `UPDATE commands SET closed_at = closed_at - interval '2 hours'`)
	report(knew, 3, fleet.TrustRequired, "0123456789abcdef")
	if openTrust(t, s, knew) != 1 {
		t.Error("a device that trusts other keys is never asked again")
	}
	// The command of one that was away is still there; a new report adds none.
	report(away, 1, fleet.TrustOpen)
	if openTrust(t, s, away) != 1 {
		t.Error("not exactly one command is open")
	}
}

func TestEveryDeviceIsToldOfTheNextCommandKey(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	d := s.Online()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	text := protocol.CommandKeyText(public)
	for range 2 {
		if err := s.DB.SetNextCommandKey(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	id, body := trustCommand(t, s, d)
	if body.Mode != fleet.TrustOpen || body.CommandKey != text || value[int](t, s, `SELECT count(*) FROM commands`) != 1 {
		t.Errorf("%+v", body)
	}
	report := func(session int64, key string) {
		t.Helper()
		st := looptest.State(session)
		st.TrustMode, st.CommandKey = fleet.TrustOpen, key
		if _, err := s.DB.ApplyState(t.Context(), d, st, looptest.Allow); err != nil {
			t.Fatal(err)
		}
	}
	others := func() int {
		t.Helper()
		state, err := s.DB.TrustState(t.Context())
		if err != nil || state.NextCommandKey != text {
			t.Fatalf("%+v, %v", state, err)
		}
		return state.OtherCommandKeys
	}
	report(2, protocol.CommandKeyText(s.Key.Public().(ed25519.PublicKey)))
	if others() != 1 {
		t.Error("the device with the old key is not counted")
	}
	s.Report(d, protocol.Result{Command: id, Attempt: 1, State: fleet.TargetSucceeded})
	report(3, text)
	if others() != 0 || openTrust(t, s, d) != 0 {
		t.Error("the device with the new key is counted, or told again")
	}
}

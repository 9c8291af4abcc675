package api_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

func signingKey(t testing.TB) bundle.SigningKey {
	t.Helper()
	k, err := bundle.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// signedBundle builds a bundle whose archive carries a signature by key, nil
// for none; the same version is the same release.
func signedBundle(t testing.TB, version string, key *bundle.SigningKey) []byte {
	t.Helper()
	dir := t.TempDir()
	for f, content := range map[string]string{
		"manifest.json": fmt.Sprintf(`{"schema":1,"name":"edge","version":%q,"counter":4,"deploy":{"script":"deploy.sh"}}`, version),
		"deploy.sh":     "#!/bin/sh\nexit 0\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var plain bytes.Buffer
	info, err := bundle.Build(dir, &plain, bundle.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if key == nil {
		return plain.Bytes()
	}
	sig, err := key.SignManifest(info.ManifestBytes, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var signed bytes.Buffer
	if _, err := bundle.ReplaceSignature(&plain, &signed, sig, bundle.Limits{}); err != nil {
		t.Fatal(err)
	}
	return signed.Bytes()
}

func TestAnUploadMustBeSignedOnceThereIsAReleaseKey(t *testing.T) {
	t.Parallel()
	e := newEnvS3(t)
	key, foreign := signingKey(t), signingKey(t)
	d := e.device(nil)
	var b fleet.Bundle
	e.upload(signedBundle(t, "1.0.0", nil)).into(http.StatusCreated, &b)
	deploy := map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{d.ID}}
	var k fleet.ReleaseKey
	e.call("POST", "/release-keys", map[string]any{"public_key": string(key.Public().File()), "description": "releases"}).into(http.StatusCreated, &k)
	if k.ID != key.Public().ID() || k.PublicKey != key.Public().String() || k.CreatedBy == "" {
		t.Errorf("%+v", k)
	}
	before := e.objects()
	for what, archive := range map[string][]byte{"unsigned": signedBundle(t, "2.0.0", nil), "unknown key": signedBundle(t, "2.0.0", &foreign), "known release": signedBundle(t, "1.0.0", nil)} {
		if detail := e.upload(archive).refused(http.StatusUnprocessableEntity, fleet.CodeBadSignature); !strings.Contains(detail, "sign") {
			t.Errorf("%s: %s", what, detail)
		}
	}
	if n := e.objects(); n != before {
		t.Errorf("%d objects after the refusals, %d before", n, before)
	}
	if detail := e.call("POST", "/deployments", deploy).refused(http.StatusUnprocessableEntity, fleet.CodeBadSignature); !strings.Contains(detail, "edge 1.0.0") {
		t.Error(detail)
	}
	e.upload(signedBundle(t, "1.0.0", &key)).into(http.StatusOK, &b)
	if b.SignedBy != k.ID {
		t.Errorf("%+v", b)
	}
	e.call("POST", "/deployments", deploy).into(http.StatusCreated, nil)
	e.upload(signedBundle(t, "2.0.0", &key)).into(http.StatusCreated, &b)
	if b.SignedBy != k.ID {
		t.Errorf("%+v", b)
	}
}

func TestReleaseKeysAreForAdminsOfTheWholeFleet(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	key, next := signingKey(t), signingKey(t)
	body := map[string]any{"public_key": string(key.Public().File())}
	for _, role := range []fleet.Role{fleet.RoleViewer, fleet.RoleOperator, fleet.RoleMonitor, fleet.RoleService} {
		tok := as(e.token(role, ""))
		e.call("POST", "/release-keys", body, tok).refused(http.StatusForbidden, fleet.CodeForbidden)
		e.call("DELETE", "/release-keys/0123456789abcdef", nil, tok).refused(http.StatusForbidden, fleet.CodeForbidden)
	}
	scoped := as(e.token(fleet.RoleAdmin, "site=berlin"))
	e.call("POST", "/release-keys", body, scoped).refused(http.StatusForbidden, fleet.CodeForbidden)
	e.call("DELETE", "/release-keys/0123456789abcdef", nil, scoped).refused(http.StatusForbidden, fleet.CodeForbidden)
	var all fleet.ReleaseKeys
	e.call("GET", "/release-keys", nil, as(e.token(fleet.RoleViewer, ""))).into(http.StatusOK, &all)
	if all.Mode != fleet.TrustOpen || all.Items == nil || len(all.Items) != 0 {
		t.Errorf("%+v", all)
	}
	e.call("POST", "/release-keys", body).into(http.StatusCreated, nil)
	e.call("POST", "/release-keys", body).into(http.StatusOK, nil)
	e.call("POST", "/release-keys", map[string]any{"public_key": "RWnothing"}).refused(http.StatusBadRequest, fleet.CodeInvalid)
	e.call("POST", "/release-keys", map[string]any{"public_key": string(next.Public().File())}).refused(http.StatusUnprocessableEntity, fleet.CodeBadSignature)
	e.call("DELETE", "/release-keys/"+key.Public().ID(), nil).refused(http.StatusConflict, fleet.CodeConflict)
	e.call("DELETE", "/release-keys/0123456789abcdef", nil).refused(http.StatusNotFound, fleet.CodeNotFound)
	sig, err := key.Sign(next.Public().File(), time.Now(), "key change")
	if err != nil {
		t.Fatal(err)
	}
	e.call("POST", "/release-keys", map[string]any{"public_key": string(next.Public().File()), "signature": string(sig)}).into(http.StatusCreated, nil)
	e.call("DELETE", "/release-keys/"+key.Public().ID(), nil).into(http.StatusNoContent, nil)
	e.call("GET", "/release-keys", nil).into(http.StatusOK, &all)
	if all.Mode != fleet.TrustRequired || len(all.Items) != 2 || all.Items[0].RevokedAt == nil || all.Items[1].SignedBy != key.Public().ID() || len(all.Active()) != 1 {
		t.Errorf("%+v", all)
	}
	var list fleet.List[fleet.AuditEntry]
	e.call("GET", "/audit"+query("action", "release_key.add"), nil).into(http.StatusOK, &list)
	if list.Total != 2 {
		t.Errorf("%d audit entries", list.Total)
	}
}

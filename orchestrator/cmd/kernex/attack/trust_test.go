package attack

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

func releaseKey(t testing.TB) bundle.SigningKey {
	t.Helper()
	k, err := bundle.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// signed is the archive of a version with a counter, and with the signature of
// key over over; "" is the manifest itself.
func signed(t testing.TB, version string, key bundle.SigningKey, over string) []byte {
	t.Helper()
	m := manifest(t, script)
	m.body = strings.Replace(strings.Replace(m.body, `"1.0.0"`, `"`+version+`"`, 1), `{`, `{"counter":7,`, 1)
	if over == "" {
		over = m.body
	}
	sig, err := key.Sign([]byte(over), time.Now(), "test")
	if err != nil {
		t.Fatal(err)
	}
	return gzipOf(t, tarOf(t, m, plain("manifest.json.minisig", string(sig)), script))
}

// trust gives the fleet its first release key, which makes signatures required,
// signs a release by a key that is revoked then, and returns attacks on both. It
// comes last: nothing makes the trust mode open again.
func (x *target) trust(t *testing.T) []attack {
	x.leave(t, x.mallory, x.malloryLine) // or it is sent the keys while the attacks run
	first, gone, stranger := releaseKey(t), releaseKey(t), releaseKey(t)
	add := func(t testing.TB, key bundle.SigningKey, by *bundle.SigningKey, token string) answer {
		t.Helper()
		body := map[string]any{"public_key": string(key.Public().File())}
		if by != nil {
			sig, err := by.Sign(key.Public().File(), time.Now(), "key")
			if err != nil {
				t.Fatal(err)
			}
			body["signature"] = string(sig)
		}
		return x.call(t, http.MethodPost, "/release-keys", body, "Authorization", "Bearer "+token)
	}
	add(t, first, nil, x.admin).into(t, http.StatusCreated, nil)
	add(t, gone, &first, x.admin).into(t, http.StatusCreated, nil)
	x.upload(t, signed(t, "3.0.0", gone, "")).into(t, http.StatusCreated, nil)
	x.call(t, http.MethodDelete, "/release-keys/"+gone.Public().ID(), nil).into(t, http.StatusNoContent, nil)
	deploy := func(version string) func(t *testing.T) {
		return func(t *testing.T) {
			x.call(t, http.MethodPost, "/deployments", map[string]any{"bundle": "edge", "bundle_version": version, "target_devices": []string{x.mallory.id}}).refused(t, 422, fleet.CodeBadSignature)
		}
	}
	upload := func(archive []byte, status int, code fleet.Code) func(t *testing.T) {
		return func(t *testing.T) { x.upload(t, archive).refused(t, status, code) }
	}
	key := func(k bundle.SigningKey, by *bundle.SigningKey, token string, status int, code fleet.Code) func(t *testing.T) {
		return func(t *testing.T) { add(t, k, by, token).refused(t, status, code) }
	}
	return []attack{
		{name: "an unsigned bundle", run: upload(newerArchive(t), 422, fleet.CodeBadSignature)},
		{name: "a bundle signed by a stranger", run: upload(signed(t, "4.0.0", stranger, ""), 422, fleet.CodeBadSignature)},
		{name: "a bundle signed by a revoked key", run: upload(signed(t, "4.0.0", gone, ""), 422, fleet.CodeBadSignature)},
		{name: "a signature of another manifest", run: upload(signed(t, "4.0.0", first, manifest(t, script).body), 422, fleet.CodeBadSignature)},
		{name: "a signature of nothing", run: upload(signed(t, "4.0.0", first, " "), 422, fleet.CodeBadSignature)},
		{name: "deploy what was never signed", run: deploy("1.0.0")},
		{name: "deploy what a revoked key signed", run: deploy("3.0.0")},
		{name: "a key without a signature", run: key(stranger, nil, x.admin, 422, fleet.CodeBadSignature)},
		{name: "a key signed by itself", run: key(stranger, &stranger, x.admin, 422, fleet.CodeBadSignature)},
		{name: "a key signed by a revoked one", run: key(stranger, &gone, x.admin, 422, fleet.CodeBadSignature)},
		{name: "a revoked key comes back", run: key(gone, &first, x.admin, 409, fleet.CodeConflict)},
		{name: "an operator adds a key", run: key(stranger, &first, x.tokens["operator"], 403, fleet.CodeForbidden)},
		{name: "a scoped admin adds a key", run: key(stranger, &first, x.tokens["scoped"], 403, fleet.CodeForbidden)},
		{name: "the last key is revoked", run: func(t *testing.T) {
			x.call(t, http.MethodDelete, "/release-keys/"+first.Public().ID(), nil).refused(t, 409, fleet.CodeConflict)
		}},
		{name: "a key that is none", run: func(t *testing.T) {
			x.call(t, http.MethodPost, "/release-keys", map[string]any{"public_key": strings.Repeat("A", 56)}).refused(t, 400, fleet.CodeInvalid)
		}},
	}
}

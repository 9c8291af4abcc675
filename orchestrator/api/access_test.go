package api_test

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/api"
	"github.com/kernexhq/kernex/pkg/fleet"
)

func TestWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id := e.device(nil).ID
	tokens := map[fleet.Role]string{fleet.RoleAdmin: e.admin}
	for _, r := range []fleet.Role{fleet.RoleViewer, fleet.RoleOperator, fleet.RoleMonitor, fleet.RoleService} {
		tokens[r] = e.token(r, "")
	}
	for _, c := range []struct {
		method, path string
		body         any
		need         fleet.Role
	}{
		{"GET", "/devices", nil, fleet.RoleViewer},
		{"GET", "/devices/" + id + "/config", nil, fleet.RoleViewer},
		{"GET", "/devices/" + id + "/logs", nil, fleet.RoleViewer},
		{"POST", "/devices/" + id + "/logs", map[string]any{"lines": 1}, fleet.RoleOperator},
		{"POST", "/devices/" + id + "/restart", nil, fleet.RoleOperator},
		{"PUT", "/devices/" + id + "/config", map[string]any{}, fleet.RoleOperator},
		{"PATCH", "/devices/" + id, map[string]any{}, fleet.RoleOperator},
		{"POST", "/deployments", map[string]any{"bundle": "b", "bundle_version": "1", "selector": ""}, fleet.RoleOperator},
		{"POST", "/devices", map[string]any{"public_key": "x"}, fleet.RoleAdmin},
		{"POST", "/devices/" + id + "/approve", nil, fleet.RoleAdmin},
		{"GET", "/tokens", nil, fleet.RoleAdmin},
		{"POST", "/enrollment-tokens", map[string]any{}, fleet.RoleAdmin},
		{"GET", "/audit", nil, fleet.RoleAdmin},
	} {
		for role, token := range tokens {
			a := e.call(c.method, c.path, c.body, as(token))
			if role.Includes(c.need) {
				if a.status == http.StatusForbidden || a.status == http.StatusUnauthorized || a.status >= 500 {
					t.Errorf("%s as %s: %d: %s", a.call, role, a.status, a.body)
				}
			} else {
				a.refused(http.StatusForbidden, fleet.CodeForbidden)
			}
		}
	}
	// A role is checked before the body is looked at.
	e.call("POST", "/deployments", `{"nonsense":`, as(tokens[fleet.RoleViewer])).refused(http.StatusForbidden, fleet.CodeForbidden)
}

func TestWithoutAValidTokenNothingIsAnswered(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	var revoked struct{ ID, Token string }
	e.call("POST", "/tokens", map[string]any{"name": "x", "role": "viewer"}).into(http.StatusCreated, &revoked)
	e.call("DELETE", "/tokens/"+revoked.ID, nil).into(http.StatusNoContent, nil)
	expired := e.token(fleet.RoleViewer, "")
	e.sql(`UPDATE api_tokens SET expires_at = now() - interval '1 second' WHERE name = 'test viewer'`)
	for name, h := range map[string]header{
		"no header":      {"Authorization", ""},
		"basic":          {"Authorization", "Basic YTpi"},
		"no secret":      {"Authorization", "Bearer "},
		"wrong":          bearer("kx_" + strings.Repeat("A", 43)),
		"a device's JWT": bearer("eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2ln"),
		"revoked":        bearer(revoked.Token),
		"expired":        bearer(expired),
		"very long":      bearer("kx_" + strings.Repeat("A", 10000)),
	} {
		for _, path := range []string{"/devices", "/nothing", "/events"} {
			a := e.call("GET", path, nil, h)
			a.refused(http.StatusUnauthorized, fleet.CodeUnauthorized)
			if a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: no WWW-Authenticate", name)
			}
		}
	}
}

func TestAScopeLimitsWhatATokenSeesAndTouches(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.bundle("edge", "1.0.0")
	berlin, paris := e.device(fleet.Labels{"site": "berlin"}).ID, e.device(fleet.Labels{"site": "paris"}).ID
	op, admin := as(e.token(fleet.RoleOperator, "site=berlin")), as(e.token(fleet.RoleAdmin, "site=berlin"))
	var list fleet.List[fleet.Device]
	e.call("GET", "/devices", nil, op).into(http.StatusOK, &list)
	if list.Total != 1 || list.Items[0].ID != berlin {
		t.Errorf("list: %+v", list)
	}
	for _, path := range []string{"", "/config", "/config/history", "/heartbeats", "/bundle-history"} {
		e.call("GET", "/devices/"+paris+path, nil, op).refused(http.StatusNotFound, fleet.CodeNotFound)
		e.call("GET", "/devices/"+berlin+path, nil, op).into(http.StatusOK, nil)
	}
	e.call("PUT", "/devices/"+paris+"/config", map[string]any{"log_level": "debug"}, op).refused(http.StatusNotFound, fleet.CodeNotFound)
	e.call("PATCH", "/devices/"+berlin, map[string]any{"labels": map[string]string{"site": "paris"}}, op).refused(http.StatusForbidden, fleet.CodeForbidden)
	e.call("POST", "/devices/"+paris+"/revoke", nil, admin).refused(http.StatusNotFound, fleet.CodeNotFound)
	var change fleet.ConfigChange
	e.call("PUT", "/config"+query("selector", "site!=rome"), map[string]any{"log_level": "debug"}, op).into(http.StatusOK, &change)
	if change.Devices != 1 {
		t.Errorf("a scoped change for many: %+v", change)
	}
	deploy := func(extra map[string]any, h header) answer {
		body := map[string]any{"bundle": "edge", "bundle_version": "1.0.0"}
		for k, v := range extra {
			body[k] = v
		}
		return e.deploy(body, h)
	}
	deploy(map[string]any{"selector": ""}, op).refused(http.StatusForbidden, fleet.CodeForbidden)
	deploy(map[string]any{"target_devices": []string{berlin, paris}}, op).refused(http.StatusForbidden, fleet.CodeForbidden)
	deploy(map[string]any{"target_devices": []string{"nobody"}}, op).refused(http.StatusForbidden, fleet.CodeForbidden)
	e.nothingStored("scoped deployments")
	var mine, all, foreign fleet.Deployment
	deploy(map[string]any{"selector": "site=berlin"}, op).into(http.StatusCreated, &mine)
	deploy(map[string]any{"selector": ""}, as(e.admin)).into(http.StatusCreated, &all)
	deploy(map[string]any{"target_devices": []string{paris}}, as(e.admin)).into(http.StatusCreated, &foreign)
	var deps fleet.List[fleet.Deployment]
	e.call("GET", "/deployments", nil, op).into(http.StatusOK, &deps)
	if deps.Total != 2 {
		t.Errorf("deployments seen: %+v", deps)
	}
	var targets fleet.List[fleet.Target]
	e.call("GET", "/deployments/"+all.ID+"/targets", nil, op).into(http.StatusOK, &targets)
	if targets.Total != 1 || targets.Items[0].DeviceID != berlin {
		t.Errorf("targets seen: %+v", targets)
	}
	e.call("POST", "/deployments/"+all.ID+"/cancel", nil, op).refused(http.StatusForbidden, fleet.CodeForbidden)
	e.call("POST", "/deployments/"+foreign.ID+"/cancel", nil, op).refused(http.StatusNotFound, fleet.CodeNotFound)
	e.call("POST", "/deployments/"+mine.ID+"/cancel", nil, op).into(http.StatusOK, nil)
	// What is not about single devices needs the whole fleet.
	e.call("POST", "/tokens", map[string]any{"name": "more", "role": "admin"}, admin).refused(http.StatusForbidden, fleet.CodeForbidden)
	e.call("GET", "/audit", nil, admin).refused(http.StatusForbidden, fleet.CodeForbidden)
	e.call("POST", "/enrollment-tokens", map[string]any{"labels": map[string]string{"site": "paris"}}, admin).refused(http.StatusForbidden, fleet.CodeForbidden)
	e.call("POST", "/enrollment-tokens", map[string]any{"labels": map[string]string{"site": "berlin"}}, admin).into(http.StatusCreated, nil)
	e.call("POST", "/devices", fleet.Registration{PublicKey: newKey(t)}, admin).refused(http.StatusForbidden, fleet.CodeForbidden)
	if n := e.count(`SELECT count(*) FROM devices`); n != 2 {
		t.Errorf("%d devices after a refused registration", n)
	}
}

func TestTheFirstAdminTokenIsMadeOnceAndOnlyIfItIsKept(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	created, err := e.db.EnsureAdminToken(t.Context(), func(string) error { t.Error("a second token was made"); return nil })
	if err != nil || created {
		t.Errorf("second time: %v, %v", created, err)
	}
	e.sql(`DELETE FROM api_tokens`)
	full := errors.New("disk full")
	if created, err := e.db.EnsureAdminToken(t.Context(), func(string) error { return full }); created || !errors.Is(err, full) {
		t.Errorf("a token that cannot be kept: %v, %v", created, err)
	}
	if n := e.count(`SELECT count(*) FROM api_tokens`); n != 0 {
		t.Errorf("%d tokens that nobody knows", n)
	}
}

func TestTheLastAdminTokenStays(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	var list fleet.List[fleet.APIToken]
	e.call("GET", "/tokens", nil).into(http.StatusOK, &list)
	e.call("DELETE", "/tokens/"+list.Items[0].ID, nil).refused(http.StatusConflict, fleet.CodeConflict)
	second := e.token(fleet.RoleAdmin, "")
	e.call("DELETE", "/tokens/"+list.Items[0].ID, nil, as(second)).into(http.StatusNoContent, nil)
	e.call("GET", "/tokens", nil).refused(http.StatusUnauthorized, fleet.CodeUnauthorized)
}

func TestUseOfATokenIsNotedAtMostOnceAMinute(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.call("GET", "/devices", nil).into(http.StatusOK, nil)
	e.sql(`UPDATE api_tokens SET last_used_at = now() - interval '30 seconds'`)
	e.call("GET", "/devices", nil).into(http.StatusOK, nil)
	if n := e.count(`SELECT count(*) FROM api_tokens WHERE last_used_at < now() - interval '20 seconds'`); n != 1 {
		t.Error("noted again within a minute")
	}
	e.sql(`UPDATE api_tokens SET last_used_at = now() - interval '61 seconds'`)
	e.call("GET", "/devices", nil).into(http.StatusOK, nil)
	if n := e.count(`SELECT count(*) FROM api_tokens WHERE last_used_at > now() - interval '20 seconds'`); n != 1 {
		t.Error("not noted after a minute")
	}
}

func TestEnrollmentTokensHaveSafeDefaults(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	var tok struct {
		fleet.EnrollmentToken
		Token string `json:"token"`
	}
	e.call("POST", "/enrollment-tokens", map[string]any{"group": "pilots", "labels": map[string]string{"site": "berlin"}}).into(http.StatusCreated, &tok)
	if tok.MaxUses != 1 || !tok.AutoApprove || tok.Labels["group"] != "pilots" || tok.Labels["site"] != "berlin" || !strings.HasPrefix(tok.Token, "ke_") {
		t.Errorf("token: %+v", tok)
	}
	for _, body := range []string{`{"max_uses":-1}`, `{"expires_at":"2001-01-01T00:00:00Z"}`, `{"labels":{"a b":"c"}}`, `{"serials":[""]}`} {
		e.call("POST", "/enrollment-tokens", body).refused(http.StatusBadRequest, fleet.CodeInvalid)
	}
	e.call("DELETE", "/enrollment-tokens/"+tok.ID, nil).into(http.StatusNoContent, nil)
	var list fleet.List[fleet.EnrollmentToken]
	e.call("GET", "/enrollment-tokens", nil).into(http.StatusOK, &list)
	if list.Total != 1 || list.Items[0].RevokedAt == nil {
		t.Errorf("list: %+v", list)
	}
}

func TestXForwardedForCountsOnlyFromATrustedProxy(t *testing.T) {
	t.Parallel()
	remoteOf := func(e *env, forwarded string) string {
		t.Helper()
		id := e.device(nil).ID
		e.call("PATCH", "/devices/"+id, map[string]any{"description": "x"}, header{"X-Forwarded-For", forwarded}).into(http.StatusOK, nil)
		var log fleet.List[fleet.AuditEntry]
		e.call("GET", "/audit"+query("subject", id, "action", "device.update"), nil).into(http.StatusOK, &log)
		return log.Items[0].Remote
	}
	plain := newEnv(t)
	if got := remoteOf(plain, "203.0.113.9"); got != "127.0.0.1" {
		t.Errorf("from an untrusted peer: %s", got)
	}
	behind := newEnv(t, func(c *api.Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	})
	for forwarded, want := range map[string]string{
		"203.0.113.9":                        "203.0.113.9",
		"198.51.100.1, 203.0.113.9":          "203.0.113.9",
		"198.51.100.1, 203.0.113.9,10.0.0.1": "203.0.113.9",
		"nonsense":                           "127.0.0.1",
	} {
		if got := remoteOf(behind, forwarded); got != want {
			t.Errorf("%q: %s, want %s", forwarded, got, want)
		}
	}
}

func TestWhoAsksTooOftenIsHeldBack(t *testing.T) {
	t.Parallel()
	e := newEnv(t, func(c *api.Config) { c.TokenRate = api.Rate{PerSecond: 0.001, Burst: 5} })
	for range 5 {
		e.call("GET", "/devices", nil).into(http.StatusOK, nil)
	}
	a := e.call("GET", "/devices", nil)
	a.refused(http.StatusTooManyRequests, fleet.CodeRateLimited)
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	guess := newEnv(t, func(c *api.Config) { c.AddressRate = api.Rate{PerSecond: 0.001, Burst: 60} })
	limited := 0
	for range 10 {
		if guess.call("GET", "/devices", nil, bearer("kx_wrong")).status == http.StatusTooManyRequests {
			limited++
		}
	}
	if limited < 7 {
		t.Errorf("%d of 10 guesses were held back", limited)
	}
}

package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/kernexhq/kernex/orchestrator/api"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
)

// documented lists the operations of the OpenAPI document with the role that
// each says it needs.
func documented(t *testing.T) map[string]fleet.Role {
	t.Helper()
	text, err := api.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			ID   string     `yaml:"operationId"`
			Role fleet.Role `yaml:"x-kernex-role"`
		}
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	ops := map[string]fleet.Role{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			if op.ID != "" {
				ops[strings.ToUpper(method)+" "+path] = op.Role
			}
		}
	}
	return ops
}

// matrix is the system under test with a token of each kind.
type matrix struct {
	*env
	deviceJWT string
	tokens    map[fleet.Role]string
	scoped    map[fleet.Role]string
}

func newMatrix(t *testing.T) *matrix {
	t.Helper()
	none := api.Rate{PerSecond: -1}
	m := &matrix{env: newEnvS3(t, func(c *api.Config) { c.TokenRate, c.AddressRate = none, none }), tokens: map[fleet.Role]string{}, scoped: map[fleet.Role]string{}}
	m.bundle("edge", "1.0.0")
	m.bundle("edge", "2.0.0")
	for _, r := range []fleet.Role{fleet.RoleViewer, fleet.RoleOperator, fleet.RoleAdmin, fleet.RoleMonitor, fleet.RoleService} {
		m.tokens[r] = m.token(r, "")
		if r.Includes(fleet.RoleViewer) {
			m.scoped[r] = m.token(r, "site=berlin")
		}
	}
	key, err := identity.Generate(identity.KindEd25519)
	if err != nil {
		t.Fatal(err)
	}
	var d fleet.Device
	m.call("POST", "/devices", fleet.Registration{PublicKey: string(key.Public().PEM())}).into(http.StatusCreated, &d)
	if m.deviceJWT, err = identity.MintDeviceToken(key, d.ID, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	return m
}

// in is the same system in another test.
func (m *matrix) in(t *testing.T) *matrix {
	own, one := *m.env, *m
	own.t, one.env = t, &own
	return &one
}

// ask makes a call and reads at most the beginning of its answer: one of the
// answers never ends.
func (m *matrix) ask(t *testing.T, method string, r request, token string) answer {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var body io.Reader
	switch b := r.body.(type) {
	case nil:
	case string:
		body = strings.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(ctx, method, m.url+"/api/v1"+r.path, body)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.header.name != "" {
		req.Header.Set(r.header.name, r.header.value)
	}
	resp, err := noRedirects.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	a := answer{t: t, call: method + " " + r.path, status: resp.StatusCode, header: resp.Header}
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		if a.body, err = io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// tables is a digest of everything that a call could change but the time at
// which a token was last used.
const tables = `SELECT hashtext(string_agg(x, '' ORDER BY x)) FROM (
	SELECT d::text AS x FROM devices d UNION ALL SELECT c::text FROM device_configs c UNION ALL SELECT k::text FROM commands k
	UNION ALL SELECT b::text FROM bundles b UNION ALL SELECT p::text FROM deployments p UNION ALL SELECT g::text FROM deployment_targets g
	UNION ALL SELECT id || coalesce(revoked_at::text, '') FROM api_tokens UNION ALL SELECT e::text FROM enrollment_tokens e
	UNION ALL SELECT r::text FROM release_keys r UNION ALL SELECT a::text FROM audit a UNION ALL SELECT v::text FROM events v) all_rows`

// refuses checks that a call gets this problem and that nothing has changed.
func (m *matrix) refuses(t *testing.T, who, method string, r request, token string, status int, code fleet.Code) {
	t.Helper()
	before := m.count(tables)
	a := m.ask(t, method, r, token)
	a.call += " as " + who
	a.refused(status, code)
	if m.count(tables) != before {
		t.Errorf("%s was refused and changed something", a.call)
	}
}

func TestEveryRoleOnEveryOperation(t *testing.T) {
	t.Parallel()
	m := newMatrix(t)
	ops := documented(t)
	for name := range operations {
		if _, ok := ops[name]; !ok {
			t.Errorf("%s is in the matrix and not in the API", name)
		}
	}
	names := make([]string, 0, len(ops))
	for name := range ops {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			op, ok := operations[name]
			if !ok {
				t.Fatalf("%s has no entry in the matrix: say who may call it", name)
			}
			if ops[name] != op.need {
				t.Errorf("the document says %s, the matrix %s", ops[name], op.need)
			}
			method, _, _ := strings.Cut(name, " ")
			one := m.in(t)
			if strings.Contains(name, "release-keys") { // a key changes what the whole fleet takes
				one = newMatrix(t)
			}
			one.roles(t, method, op)
			one.scopes(t, method, op)
		})
	}
}

// roles calls an operation with every kind of credential.
func (m *matrix) roles(t *testing.T, method string, op operation) {
	t.Helper()
	refused := op.call(m.env, "berlin")
	m.refuses(t, "nobody", method, refused, "", http.StatusUnauthorized, fleet.CodeUnauthorized)
	m.refuses(t, "a device", method, refused, m.deviceJWT, http.StatusUnauthorized, fleet.CodeUnauthorized)
	for role, token := range m.tokens {
		if !role.Includes(op.need) {
			m.refuses(t, string(role), method, refused, token, http.StatusForbidden, fleet.CodeForbidden)
			continue
		}
		a := m.ask(t, method, op.call(m.env, "berlin"), token)
		if a.status != op.ok {
			t.Errorf("%s as %s: %d, want %d: %s", a.call, role, a.status, op.ok, a.body)
		}
	}
}

// scopes calls an operation with tokens that see the site berlin only.
func (m *matrix) scopes(t *testing.T, method string, op operation) {
	t.Helper()
	for role, token := range m.scoped {
		own, foreign := op.call(m.env, "berlin"), op.call(m.env, "paris")
		who := string(role) + " of berlin"
		if !role.Includes(op.need) || op.scope == whole {
			m.refuses(t, who, method, own, token, http.StatusForbidden, fleet.CodeForbidden)
			continue
		}
		a := m.ask(t, method, own, token)
		if a.status != op.ok || !strings.Contains(string(a.body), own.visible) && op.ok != http.StatusNoContent && op.scope == filtered {
			t.Errorf("%s as %s: %d, want %d and %s: %s", a.call, who, a.status, op.ok, own.visible, a.body)
		}
		switch op.scope {
		case perDevice:
			m.refuses(t, who, method, foreign, token, http.StatusNotFound, fleet.CodeNotFound)
		case naming:
			m.refuses(t, who, method, foreign, token, http.StatusForbidden, fleet.CodeForbidden)
		case choosing:
			m.refuses(t, who, method, foreign, token, http.StatusBadRequest, fleet.CodeInvalid)
		case filtered:
			if a := m.ask(t, method, foreign, token); a.status != op.ok || strings.Contains(string(a.body), foreign.visible) {
				t.Errorf("%s as %s: %d, and it shows %s of another site: %s", a.call, who, a.status, foreign.visible, a.body)
			}
		}
	}
}

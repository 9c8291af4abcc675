package api_test

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
)

// rows is what no refused request may change.
const rows = `SELECT (SELECT count(*) FROM devices) * 1000000 + (SELECT count(*) FROM deployments) * 100000 + (SELECT count(*) FROM commands) * 10000
	+ (SELECT count(*) FROM device_configs) * 1000 + (SELECT count(*) FROM api_tokens) * 100 + (SELECT count(*) FROM audit)`

func publicPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestBadInputIsRefusedAndChangesNothing(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.bundle("edge", "1.0.0")
	id := e.device(nil).ID
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(bytes.Repeat([]byte(" "), 10<<20))
	_ = z.Close()
	deployment := `{"bundle":"edge","bundle_version":"1.0.0","target_devices":["` + id + `"]`
	reg := `{"public_key":"x"`
	gz, plain := header{"Content-Encoding", "gzip"}, header{"Content-Type", "text/plain"}
	before := e.count(rows)
	for _, c := range []struct {
		name, method, path string
		body               any
		header             header
		status             int
		code               fleet.Code
	}{
		{"unknown field", "POST", "/deployments", deployment + `,"force":true}`, header{}, 400, fleet.CodeInvalid},
		{"unknown field in another case", "POST", "/deployments", deployment + `,"Description":"x"}`, header{}, 400, fleet.CodeInvalid},
		{"unknown nested field", "POST", "/deployments", deployment + `,"rollout":{"x":1}}`, header{}, 400, fleet.CodeInvalid},
		{"duplicate keys", "POST", "/deployments", deployment + `,"bundle":"edge"}`, header{}, 400, fleet.CodeInvalid},
		{"duplicate label", "PATCH", "/devices/" + id, `{"labels":{"a":"1","a":"2"}}`, header{}, 400, fleet.CodeInvalid},
		{"trailing data", "POST", "/deployments", deployment + `} {}`, header{}, 400, fleet.CodeInvalid},
		{"no JSON", "POST", "/deployments", `bundle=edge`, header{}, 400, fleet.CodeInvalid},
		{"an array", "POST", "/deployments", `[]`, header{}, 400, fleet.CodeInvalid},
		{"cut short", "POST", "/deployments", deployment, header{}, 400, fleet.CodeInvalid},
		{"no body", "POST", "/deployments", nil, header{}, 400, fleet.CodeInvalid},
		{"wrong type", "POST", "/deployments", `{"bundle":1,"bundle_version":"1.0.0","selector":""}`, header{}, 400, fleet.CodeInvalid},
		{"10,000 deep", "POST", "/deployments", `{"bundle":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`, header{}, 400, fleet.CodeInvalid},
		{"NaN", "PUT", "/devices/" + id + "/config", `{"metadata":{"a":NaN}}`, header{}, 400, fleet.CodeInvalid},
		{"NUL in a value", "PATCH", "/devices/" + id, `{"description":"a\u0000b"}`, header{}, 400, fleet.CodeInvalid},
		{"11 MiB body", "POST", "/deployments", `{"description":"` + strings.Repeat("x", 11<<20) + `"}`, header{}, 413, fleet.CodeTooLarge},
		{"11 MiB of unknown length", "POST", "/deployments", unsized{strings.NewReader(`{"description":"` + strings.Repeat("x", 11<<20) + `"}`)}, header{}, 413, fleet.CodeTooLarge},
		{"gzip bomb", "POST", "/deployments", &zipped, gz, 415, fleet.CodeUnsupported},
		{"wrong content type", "POST", "/deployments", deployment + `}`, plain, 415, fleet.CodeUnsupported},
		{"no content type", "POST", "/deployments", deployment + `}`, header{"Content-Type", ""}, 415, fleet.CodeUnsupported},
		{"foreign id", "GET", "/devices/nobody", nil, header{}, 404, fleet.CodeNotFound},
		{"../ id", "GET", "/devices/../tokens", nil, header{}, 400, fleet.CodeInvalid},
		{"escaped ../ id", "GET", "/devices/%2e%2e%2ftokens", nil, header{}, 400, fleet.CodeInvalid},
		{"slash in an id", "DELETE", "/devices/a%2fb", nil, header{}, 400, fleet.CodeInvalid},
		{"NUL id", "GET", "/devices/a%00b", nil, header{}, 400, fleet.CodeInvalid},
		{"upper-case id", "GET", "/devices/ABC", nil, header{}, 400, fleet.CodeInvalid},
		{"empty element", "GET", "/devices//config", nil, header{}, 400, fleet.CodeInvalid},
		{"limit -1", "GET", "/devices?limit=-1", nil, header{}, 400, fleet.CodeInvalid},
		{"limit 0", "GET", "/devices?limit=0", nil, header{}, 400, fleet.CodeInvalid},
		{"limit 1e9", "GET", "/devices?limit=1e9", nil, header{}, 400, fleet.CodeInvalid},
		{"limit 1001", "GET", "/devices?limit=1001", nil, header{}, 400, fleet.CodeInvalid},
		{"foreign cursor", "GET", "/devices?cursor=nonsense!", nil, header{}, 400, fleet.CodeInvalid},
		{"foreign time cursor", "GET", "/deployments?cursor=YXxi", nil, header{}, 400, fleet.CodeInvalid},
		{"cursor of another list", "GET", "/audit?cursor=YXxi", nil, header{}, 400, fleet.CodeInvalid},
		{"NUL in a query", "GET", "/devices?q=%00", nil, header{}, 400, fleet.CodeInvalid},
		{"unknown query", "GET", "/devices?labels=a", nil, header{}, 400, fleet.CodeInvalid},
		{"unknown status", "GET", "/devices?status=fine", nil, header{}, 400, fleet.CodeInvalid},
		{"bad selector", "GET", "/devices?selector=a%3D%27", nil, header{}, 400, fleet.CodeInvalid},
		{"selector to nobody", "POST", "/deployments", `{"bundle":"edge","bundle_version":"1.0.0","selector":"a=b"}`, header{}, 400, fleet.CodeInvalid},
		{"unknown bundle", "POST", "/deployments", `{"bundle":"other","bundle_version":"1.0.0","selector":""}`, header{}, 404, fleet.CodeNotFound},
		{"bad time", "GET", "/devices/" + id + "/heartbeats?from=yesterday", nil, header{}, 400, fleet.CodeInvalid},
		{"unknown role", "POST", "/tokens", `{"name":"x","role":"root"}`, header{}, 400, fleet.CodeInvalid},
		{"expired token", "POST", "/tokens", `{"name":"x","role":"viewer","expires_at":"2001-01-01T00:00:00Z"}`, header{}, 400, fleet.CodeInvalid},
		{"scoped monitor", "POST", "/tokens", `{"name":"x","role":"monitor","selector":"a=b"}`, header{}, 400, fleet.CodeInvalid},
		{"bad label", "PATCH", "/devices/" + id, `{"labels":{"a b":"c"}}`, header{}, 400, fleet.CodeInvalid},
		{"huge metadata", "POST", "/devices", reg + `,"hardware_metadata":{"a":"` + strings.Repeat("x", 9000) + `"}}`, header{}, 413, fleet.CodeTooLarge},
		{"unknown path", "GET", "/nothing", nil, header{}, 404, fleet.CodeNotFound},
		{"unknown method", "DELETE", "/devices", nil, header{}, 405, "method_not_allowed"},
		{"bad event number", "GET", "/events", nil, header{"Last-Event-ID", "-1"}, 400, fleet.CodeInvalid},
	} {
		var hs []header
		if c.header.name != "" {
			hs = append(hs, c.header)
		}
		t.Logf("%s: %s", c.name, e.call(c.method, c.path, c.body, hs...).refused(c.status, c.code))
		if after := e.count(rows); after != before {
			t.Fatalf("%s: the rows changed from %d to %d", c.name, before, after)
		}
	}
}

// unsized hides a body's length, so that it is sent in chunks.
type unsized struct{ *strings.Reader }

func (u unsized) Read(p []byte) (int, error) { return u.Reader.Read(p) }

func TestABadKeyIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	three := weak.PublicKey
	three.E = 3
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, err := identity.Generate(identity.KindEd25519)
	if err != nil {
		t.Fatal(err)
	}
	private, err := own.PEM()
	if err != nil {
		t.Fatal(err)
	}
	// The modulus of a weak key, cut from a good one: nothing else here makes one.
	small := rsa.PublicKey{E: 65537, N: weak.N.Rsh(weak.N, 1024)}
	for name, key := range map[string]string{
		"RSA-1024": publicPEM(t, &small), "e = 3": publicPEM(t, &three), "P-224": publicPEM(t, &p224.PublicKey), "a private key": string(private),
		"empty": "", "no PEM": "ssh-ed25519 AAAA", "two keys": newKey(t) + newKey(t),
	} {
		body, err := json.Marshal(map[string]string{"public_key": key})
		if err != nil {
			t.Fatal(err)
		}
		detail := e.call("POST", "/devices", string(body)).refused(http.StatusBadRequest, fleet.CodeInvalid)
		t.Logf("%s: %s", name, detail)
		if strings.Contains(detail, "PRIVATE") && strings.Contains(detail, string(private[30:60])) {
			t.Error("the answer shows the key")
		}
	}
	if n := e.count(`SELECT count(*) FROM devices`); n != 0 {
		t.Errorf("%d devices", n)
	}
}

func TestInternalsStayInTheLog(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.sql(`ALTER TABLE audit RENAME TO audit_gone`)
	a := e.call("GET", "/audit", nil)
	a.refused(http.StatusInternalServerError, fleet.CodeInternal)
	id := a.header.Get("X-Request-Id")
	if id == "" || !strings.Contains(e.logs.String(), id) || !strings.Contains(e.logs.String(), "audit") {
		t.Errorf("the log does not explain request %s: %s", id, e.logs)
	}
	if strings.Contains(e.logs.String(), e.admin) {
		t.Error("the log holds a token")
	}
}

func TestAnswersCarrySecurityHeaders(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	a := e.call("GET", "/devices", nil)
	for name, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "X-Frame-Options": "DENY",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Access-Control-Allow-Origin": "",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

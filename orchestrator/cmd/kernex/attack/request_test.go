package attack

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// requests are calls of the admin API.
func (x *target) requests(t *testing.T) []attack {
	victim, mallory := x.victim.id, x.mallory.id
	deployment := fmt.Sprintf(`{"bundle":%q,"bundle_version":%q,"target_devices":[%q]`, x.bundle.Name, x.bundle.Version, victim)
	zipped := &bytes.Buffer{}
	z := gzip.NewWriter(zipped)
	_, _ = z.Write(bytes.Repeat([]byte(" "), 10<<20)) // into memory
	_ = z.Close()
	as := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	var list []attack
	for name, c := range map[string]struct {
		method, path string
		body         any
		headers      []string
		status       int
		code         fleet.Code
	}{
		"nobody lists devices":                   {"GET", "/devices", nil, []string{"Authorization", ""}, 401, fleet.CodeUnauthorized},
		"nobody revokes a device":                {"POST", "/devices/" + victim + "/revoke", nil, []string{"Authorization", ""}, 401, fleet.CodeUnauthorized},
		"basic authorization":                    {"GET", "/devices", nil, []string{"Authorization", "Basic YWRtaW46YWRtaW4="}, 401, fleet.CodeUnauthorized},
		"a claim token":                          {"GET", "/devices", nil, as(x.claimTokens["good"]), 401, fleet.CodeUnauthorized},
		"a guess":                                {"GET", "/devices", nil, as("kx_" + strings.Repeat("A", 43)), 401, fleet.CodeUnauthorized},
		"SQL for a token":                        {"GET", "/devices", nil, as("' OR 1=1 --"), 401, fleet.CodeUnauthorized},
		"a monitor token":                        {"GET", "/devices", nil, as(x.tokens["monitor"]), 403, fleet.CodeForbidden},
		"a service token":                        {"GET", "/devices", nil, as(x.tokens["service"]), 403, fleet.CodeForbidden},
		"a revoked token":                        {"GET", "/devices", nil, as(x.tokens["revoked"]), 401, fleet.CodeUnauthorized},
		"an expired token":                       {"GET", "/devices", nil, as(x.tokens["expired"]), 401, fleet.CodeUnauthorized},
		"a viewer deploys":                       {"POST", "/deployments", deployment + "}", as(x.tokens["viewer"]), 403, fleet.CodeForbidden},
		"a viewer revokes":                       {"POST", "/devices/" + victim + "/revoke", nil, as(x.tokens["viewer"]), 403, fleet.CodeForbidden},
		"an operator makes an admin":             {"POST", "/tokens", map[string]any{"name": "x", "role": "admin"}, as(x.tokens["operator"]), 403, fleet.CodeForbidden},
		"an operator approves a device":          {"POST", "/devices/" + x.pending.id + "/approve", nil, as(x.tokens["operator"]), 403, fleet.CodeForbidden},
		"an operator releases a device":          {"POST", "/devices/" + x.quarantined.id + "/release", nil, as(x.tokens["operator"]), 403, fleet.CodeForbidden},
		"an operator reads the audit log":        {"GET", "/audit", nil, as(x.tokens["operator"]), 403, fleet.CodeForbidden},
		"a scoped admin reads another's device":  {"GET", "/devices/" + victim, nil, as(x.tokens["scoped"]), 404, fleet.CodeNotFound},
		"a scoped admin revokes another's":       {"POST", "/devices/" + victim + "/revoke", nil, as(x.tokens["scoped"]), 404, fleet.CodeNotFound},
		"a scoped admin deploys everywhere":      {"POST", "/deployments", fmt.Sprintf(`{"bundle":%q,"bundle_version":%q,"selector":""}`, x.bundle.Name, x.bundle.Version), as(x.tokens["scoped"]), 403, fleet.CodeForbidden},
		"a scoped admin makes a token":           {"POST", "/tokens", map[string]any{"name": "x", "role": "admin"}, as(x.tokens["scoped"]), 403, fleet.CodeForbidden},
		"a scoped admin deletes a bundle":        {"DELETE", "/bundles/" + x.bundle.ID, nil, as(x.tokens["scoped"]), 403, fleet.CodeForbidden},
		"a foreign id":                           {"GET", "/devices/nobody", nil, nil, 404, fleet.CodeNotFound},
		"../ in an id":                           {"GET", "/devices/..%2f..%2faudit", nil, nil, 400, fleet.CodeInvalid},
		"NUL in an id":                           {"GET", "/devices/a%00b", nil, nil, 400, fleet.CodeInvalid},
		"an id of 64 characters":                 {"GET", "/devices/" + strings.Repeat("a", 64), nil, nil, 400, fleet.CodeInvalid},
		"SQL in a selector":                      {"GET", "/devices?selector=a%3D%27%20OR%201%3D1", nil, nil, 400, fleet.CodeInvalid},
		"limit -1":                               {"GET", "/devices?limit=-1", nil, nil, 400, fleet.CodeInvalid},
		"limit 1e9":                              {"GET", "/devices?limit=1000000000", nil, nil, 400, fleet.CodeInvalid},
		"a cursor that is none":                  {"GET", "/devices?cursor=%00%00", nil, nil, 400, fleet.CodeInvalid},
		"a query that does not exist":            {"GET", "/devices?admin=true", nil, nil, 400, fleet.CodeInvalid},
		"unknown field":                          {"POST", "/deployments", deployment + `,"force":true}`, nil, 400, fleet.CodeInvalid},
		"duplicate keys":                         {"POST", "/deployments", deployment + `,"bundle":"x"}`, nil, 400, fleet.CodeInvalid},
		"trailing data":                          {"POST", "/deployments", deployment + `}{}`, nil, 400, fleet.CodeInvalid},
		"10,000 deep":                            {"POST", "/deployments", `{"bundle":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`, nil, 400, fleet.CodeInvalid},
		"NaN":                                    {"PUT", "/devices/" + victim + "/config", `{"metadata":{"a":NaN}}`, nil, 400, fleet.CodeInvalid},
		"NUL in a value":                         {"PATCH", "/devices/" + victim, `{"description":"\u0000"}`, nil, 400, fleet.CodeInvalid},
		"a body of 11 MiB":                       {"POST", "/deployments", `{"description":"` + strings.Repeat("x", 11<<20) + `"}`, nil, 413, fleet.CodeTooLarge},
		"a gzip bomb":                            {"POST", "/deployments", zipped, []string{"Content-Encoding", "gzip"}, 415, fleet.CodeUnsupported},
		"a form for JSON":                        {"POST", "/deployments", "bundle=x", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, fleet.CodeUnsupported},
		"text for JSON, as a browser's form may": {"POST", "/deployments", deployment + "}", []string{"Content-Type", "text/plain"}, 415, fleet.CodeUnsupported},
		"DELETE of everything":                   {"DELETE", "/devices", nil, nil, 405, "method_not_allowed"},
		"TRACE":                                  {"TRACE", "/devices", nil, nil, 405, "method_not_allowed"},
		"a path that does not exist":             {"GET", "/../internal/v1/broker/grants", nil, nil, 400, fleet.CodeInvalid},
		"deploy to nobody":                       {"POST", "/deployments", fmt.Sprintf(`{"bundle":%q,"bundle_version":%q,"selector":"no=body"}`, x.bundle.Name, x.bundle.Version), nil, 400, fleet.CodeInvalid},
		"deploy to a revoked device":             {"POST", "/deployments", strings.Replace(deployment, victim, x.revoked.id, 1) + "}", nil, 409, fleet.CodeConflict},
		"deploy to a quarantined device":         {"POST", "/deployments", strings.Replace(deployment, victim, x.quarantined.id, 1) + "}", nil, 409, fleet.CodeConflict},
		"deploy to a pending device":             {"POST", "/deployments", strings.Replace(deployment, victim, x.pending.id, 1) + "}", nil, 409, fleet.CodeConflict},
		"deploy an unknown bundle":               {"POST", "/deployments", `{"bundle":"other","bundle_version":"1.0.0","selector":""}`, nil, 404, fleet.CodeNotFound},
		"roll back to what never ran":            {"POST", "/devices/rollback", fmt.Sprintf(`{"bundle_version":"9.9.9","target_device_ids":[%q]}`, victim), nil, 400, fleet.CodeInvalid},
		"delete a bundle in use":                 {"DELETE", "/bundles/" + x.bundle.ID, nil, nil, 409, fleet.CodeConflict},
		"bring a revoked device back":            {"POST", "/devices/" + x.revoked.id + "/release", nil, nil, 409, fleet.CodeConflict},
		"approve a quarantined device":           {"POST", "/devices/" + x.quarantined.id + "/approve", nil, nil, 409, fleet.CodeConflict},
		"register a revoked key":                 {"POST", "/devices", fleet.Registration{PublicKey: publicPEM(t, x.revoked.key.Public())}, nil, 409, fleet.CodeConflict},
		"a stale If-Match":                       {"PUT", "/devices/" + victim + "/config", `{"log_level":"error"}`, []string{"If-Match", `"1"`}, 412, fleet.CodeStale},
		"an If-Match that is none":               {"PUT", "/devices/" + victim + "/config", `{"log_level":"error"}`, []string{"If-Match", `W/"2"`}, 412, fleet.CodeStale},
		"a heartbeat interval of 0":              {"PUT", "/devices/" + victim + "/config", `{"heartbeat_interval_s":0}`, nil, 400, fleet.CodeInvalid},
		"a role that does not exist":             {"POST", "/tokens", `{"name":"x","role":"root"}`, nil, 400, fleet.CodeInvalid},
		"a token that has expired":               {"POST", "/tokens", `{"name":"x","role":"viewer","expires_at":"2001-01-01T00:00:00Z"}`, nil, 400, fleet.CodeInvalid},
		"a service token of a scope":             {"POST", "/tokens", `{"name":"x","role":"service","selector":"a=b"}`, nil, 400, fleet.CodeInvalid},
		"the same Idempotency-Key, another body": {"POST", "/enrollment-tokens", `{"description":"another"}`, []string{"Idempotency-Key", "attack"}, 409, fleet.CodeIdempotency},
		"an Idempotency-Key of 256 characters":   {"POST", "/devices/" + mallory + "/restart", nil, []string{"Idempotency-Key", strings.Repeat("k", 256)}, 400, fleet.CodeInvalid},
		"an event number below zero":             {"GET", "/events", nil, []string{"Last-Event-ID", "-1"}, 400, fleet.CodeInvalid},
	} {
		list = append(list, attack{name: name, run: func(t *testing.T) {
			x.call(t, c.method, c.path, c.body, c.headers...).refused(t, c.status, c.code)
		}})
	}
	return append(list, x.rawRequests()...)
}

// rawRequests are what no HTTP client sends; the first line of the answer says
// what became of it.
func (x *target) rawRequests() []attack {
	head := "Host: x\r\nAuthorization: Bearer " + x.admin + "\r\n"
	path := "/api/v1/devices/" + x.victim.id + "/revoke"
	var list []attack
	for name, c := range map[string]struct{ send, want string }{
		"two lengths":                    {"POST " + path + " HTTP/1.1\r\n" + head + "Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 400"},
		"a negative length":              {"POST " + path + " HTTP/1.1\r\n" + head + "Content-Length: -1\r\n\r\n", "HTTP/1.1 400"},
		"an unknown transfer encoding":   {"POST " + path + " HTTP/1.1\r\n" + head + "Transfer-Encoding: gzip\r\n\r\n", "HTTP/1.1 501"},
		"a chunk that is no number":      {"POST " + path + " HTTP/1.1\r\n" + head + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "HTTP/1.1 400"},
		"headers of 1 MiB":               {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "HTTP/1.1 431"},
		"no Host":                        {"POST " + path + " HTTP/1.1\r\nAuthorization: Bearer " + x.admin + "\r\n\r\n", "HTTP/1.1 400"},
		"a line feed in a header's name": {"POST " + path + " HTTP/1.1\r\nHost: x\r\nAuth\norization: y\r\n\r\n", "HTTP/1.1 400"},
		"two authorizations":             {"POST " + path + " HTTP/1.1\r\n" + head + "Authorization: Bearer x\r\n\r\n", "HTTP/1.1 401"},
		"../ in the path":                {"POST /api/v1/devices/x/../" + x.victim.id + "/revoke HTTP/1.1\r\n" + head + "\r\n", "HTTP/1.1 400"},
		"two slashes in the path":        {"POST /api/v1//devices/" + x.victim.id + "/revoke HTTP/1.1\r\n" + head + "\r\n", "HTTP/1.1 400"},
		"a proxy request":                {"CONNECT 127.0.0.1:5432 HTTP/1.1\r\n" + head + "\r\n", "HTTP/1.1 404"},
		"HTTP/0.9":                       {"GET " + path + "\r\n", "HTTP/1.1 400"},
		"a TLS hello":                    {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "HTTP/1.1 400"},
	} {
		list = append(list, attack{name: "raw: " + name, run: func(t *testing.T) {
			conn, err := net.Dial("tcp", strings.TrimPrefix(x.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			_, _ = io.WriteString(conn, c.send) // a server that has heard enough closes
			line, err := bufio.NewReader(conn).ReadString('\n')
			if !strings.HasPrefix(line, c.want) {
				t.Errorf("answer %q, %v; want %s", line, err, c.want)
			}
		}})
	}
	list = append(list, attack{name: "raw: headers that never end", run: func(t *testing.T) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(x.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		begin := time.Now()
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nX: ")
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			return // an answer, 408 or 400
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("the connection stays for %v", took)
		}
	}})
	return list
}

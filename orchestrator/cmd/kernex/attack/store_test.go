package attack

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// storeRequests go to the object store, which devices reach: with a leaked URL,
// or with none.
func (x *target) storeRequests(t *testing.T) []attack {
	a := x.call(t, http.MethodGet, "/bundles/"+x.bundle.ID+"/download", nil)
	a.into(t, http.StatusFound, nil)
	signed, err := url.Parse(a.header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	if got := do(t, http.MethodGet, signed.String(), nil); got.status != http.StatusOK {
		t.Fatalf("the URL itself: %d", got.status)
	}
	changed := func(change func(u *url.URL, q url.Values)) string {
		u := *signed
		q := u.Query()
		change(&u, q)
		u.RawQuery = q.Encode()
		return u.String()
	}
	set := func(name, v string) string { return changed(func(_ *url.URL, q url.Values) { q.Set(name, v) }) }
	plain := changed(func(_ *url.URL, q url.Values) { clear(q) })
	bucket := strings.TrimSuffix(x.s3.URL, "/") + "/bundles"
	var list []attack
	for name, c := range map[string]struct{ method, url string }{
		"the object without a signature":  {http.MethodGet, plain},
		"the list of the bucket":          {http.MethodGet, bucket + "?list-type=2"},
		"the list of buckets":             {http.MethodGet, x.s3.URL + "/"},
		"another object by the same URL":  {http.MethodGet, changed(func(u *url.URL, _ url.Values) { u.Path += "x" })},
		"a later end":                     {http.MethodGet, set("X-Amz-Expires", "86400")},
		"another date":                    {http.MethodGet, set("X-Amz-Date", "20200101T000000Z")},
		"another signature":               {http.MethodGet, set("X-Amz-Signature", strings.Repeat("0", 64))},
		"a PUT by a URL for GET":          {http.MethodPut, signed.String()},
		"a DELETE by a URL for GET":       {http.MethodDelete, signed.String()},
		"a PUT of a new object":           {http.MethodPut, bucket + "/evil"},
		"a DELETE of the object":          {http.MethodDelete, plain},
		"a DELETE of the bucket":          {http.MethodDelete, bucket},
		"an ACL that lets everybody read": {http.MethodPut, bucket + "?acl"},
		"../ out of the bucket":           {http.MethodGet, bucket + "/..%2f..%2f..%2fetc%2fpasswd"},
	} {
		list = append(list, attack{name: name, run: func(t *testing.T) {
			var body any
			if c.method == http.MethodPut {
				body = "evil"
			}
			a := do(t, c.method, c.url, body, "Content-Type", "")
			if a.status < 400 || a.status > 404 || strings.Contains(string(a.body), "root:") {
				t.Errorf("%s %s: %d %.200s", c.method, c.url, a.status, a.body)
			}
		}})
	}
	return list
}

// internals are requests to what brokers on other hosts ask.
func (x *target) internals(*testing.T) []attack {
	login := map[string]any{"username": x.victim.id, "client_id": x.victim.id, "password": []byte("guess"), "remote": "127.0.0.1:1"}
	var list []attack
	for name, c := range map[string]struct {
		method, path string
		body         any
		auth         string
		status       int
		code         fleet.Code
	}{
		"nobody asks":               {"POST", "/internal/v1/broker/auth", login, "", 401, fleet.CodeForbidden},
		"with the admin's token":    {"POST", "/internal/v1/broker/auth", login, "Bearer " + x.admin, 401, fleet.CodeForbidden},
		"with a service token":      {"POST", "/internal/v1/broker/auth", login, "Bearer " + x.tokens["service"], 401, fleet.CodeForbidden},
		"with part of the secret":   {"POST", "/internal/v1/broker/auth", login, "Bearer " + x.shared[1:], 401, fleet.CodeForbidden},
		"with an empty secret":      {"POST", "/internal/v1/broker/auth", login, "Bearer ", 401, fleet.CodeForbidden},
		"grants without the secret": {"GET", "/internal/v1/broker/grants", nil, "", 401, fleet.CodeForbidden},
		"a wrong password":          {"POST", "/internal/v1/broker/auth", login, "Bearer " + x.shared, 403, fleet.CodeUnauthorized},
		"a login of 20 KiB":         {"POST", "/internal/v1/broker/auth", `{"username":"` + strings.Repeat("x", 20<<10) + `"}`, "Bearer " + x.shared, 413, fleet.CodeTooLarge},
		"duplicate keys":            {"POST", "/internal/v1/broker/auth", `{"username":"a","username":"b"}`, "Bearer " + x.shared, 400, fleet.CodeInvalid},
		"a time that is none":       {"GET", "/internal/v1/broker/grants?since=yesterday", nil, "Bearer " + x.shared, 400, fleet.CodeInvalid},
	} {
		list = append(list, attack{name: name, run: func(t *testing.T) {
			a := do(t, c.method, x.internal.URL+c.path, c.body, "Authorization", c.auth)
			if a.status != c.status || !strings.Contains(string(a.body), `"`+string(c.code)+`"`) {
				t.Errorf("%d %s, want %d %s", a.status, a.body, c.status, c.code)
			}
		}})
	}
	return append(list, attack{name: "on the admin API's port", run: func(t *testing.T) {
		a := do(t, http.MethodPost, x.url+"/internal/v1/broker/auth", login, "Authorization", "Bearer "+x.shared)
		if a.status != http.StatusNotFound {
			t.Errorf("%d %s", a.status, a.body)
		}
	}})
}

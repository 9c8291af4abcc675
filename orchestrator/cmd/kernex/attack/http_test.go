package attack

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/api"
	"github.com/kernexhq/kernex/pkg/fleet"
)

var client = &http.Client{
	Timeout:       time.Minute,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
}

// answer is what a call got.
type answer struct {
	call   string
	status int
	header http.Header
	body   []byte
}

// call calls the admin API with the admin's token; headers are names and
// values, an empty value takes one away.
func (s *system) call(t testing.TB, method, path string, body any, headers ...string) answer {
	t.Helper()
	return do(t, method, s.url+"/api/v1"+path, body, append([]string{"Authorization", "Bearer " + s.admin}, headers...)...)
}

// do sends a string as it is and anything else as JSON.
func do(t testing.TB, method, url string, body any, headers ...string) answer {
	t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case io.Reader:
		r = b
	default:
		j, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, r)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if req.Header.Set(headers[i], headers[i+1]); headers[i+1] == "" {
			req.Header.Del(headers[i])
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return answer{call: method + " " + url, status: resp.StatusCode, header: resp.Header, body: b}
}

// into checks the status and decodes the body.
func (a answer) into(t testing.TB, status int, v any) {
	t.Helper()
	if a.status != status {
		t.Fatalf("%s: %d, want %d: %s", a.call, a.status, status, a.body)
	}
	if v == nil {
		return
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%s: %v: %s", a.call, err, a.body)
	}
}

// refused checks the problem that the answer must be.
func (a answer) refused(t testing.TB, status int, code fleet.Code) {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(a.body, &p); err != nil || a.status != status || p.Code != code || p.Detail == "" {
		t.Errorf("%s: %d %s, want %d %s", a.call, a.status, a.body, status, code)
	}
	for _, internal := range []string{"pq:", "SELECT ", "sql:", ".go:", "goroutine", "/tmp/"} {
		if strings.Contains(string(a.body), internal) {
			t.Errorf("%s: the answer shows internals: %s", a.call, a.body)
		}
	}
}

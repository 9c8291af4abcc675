package console

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func ask(t *testing.T, method, path string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w
}

func assets(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"/]+)"`).FindAllStringSubmatch(ask(t, "GET", "/").Body.String(), -1) {
		names = append(names, "/"+m[1])
	}
	if len(names) != 3 {
		t.Fatalf("the page refers to %q, want a script, a style sheet and an icon", names)
	}
	return names
}

func TestThePageIsServedAndAskedForAgainEachTime(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/", "/index.html"} {
		r := ask(t, "GET", path)
		if r.Code != http.StatusOK || r.Header().Get("Content-Type") != "text/html; charset=utf-8" || r.Header().Get("Cache-Control") != "no-cache" {
			t.Errorf("GET %s: %d, %v", path, r.Code, r.Header())
		}
		again := ask(t, "GET", path, "If-None-Match", r.Header().Get("ETag"))
		if again.Code != http.StatusNotModified {
			t.Errorf("GET %s with its ETag: %d, want 304", path, again.Code)
		}
	}
}

func TestEveryAssetOfThePageMayBeKeptForEver(t *testing.T) {
	t.Parallel()
	for _, path := range assets(t) {
		r := ask(t, "GET", path)
		if r.Code != http.StatusOK || !strings.Contains(r.Header().Get("Cache-Control"), "immutable") || r.Header().Get("ETag") == "" {
			t.Errorf("GET %s: %d, %v", path, r.Code, r.Header())
		}
		if head := ask(t, "HEAD", path); head.Code != http.StatusOK || head.Header().Get("Content-Length") == "" {
			t.Errorf("HEAD %s: %d, %v", path, head.Code, head.Header())
		}
	}
}

func TestEveryAnswerCarriesThePolicy(t *testing.T) {
	t.Parallel()
	for _, path := range append(assets(t), "/", "/nothing") {
		h := ask(t, "GET", path).Header()
		csp := h.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; script-src 'self';") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("X-Frame-Options") != "DENY" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

func TestThePageNeedsNothingThatThePolicyForbids(t *testing.T) {
	t.Parallel()
	page := ask(t, "GET", "/").Body.String()
	for name, bad := range map[string]string{
		"inline script": `<script[^>]*>[^<]`, "inline style": `<style|\sstyle=`, "listener attribute": `\son[a-z]+=`, "foreign origin": `https?://`,
	} {
		if found := regexp.MustCompile(bad).FindString(page); found != "" {
			t.Errorf("the page has an %s: %q", name, found)
		}
	}
	for _, path := range assets(t) {
		if text := ask(t, "GET", path).Body.String(); strings.Contains(text, "innerHTML") || strings.Contains(text, "insertAdjacentHTML") || strings.Contains(text, "document.write") {
			t.Errorf("%s makes markup from strings", path)
		}
	}
}

func TestAnythingElseIsNotFoundAndNotKept(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/nothing", "/main.js", "/dist/index.html", "/favicon.ico", "/%2e%2e/console.go", "//index.html"} {
		if r := ask(t, "GET", path); r.Code != http.StatusNotFound || r.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("GET %s: %d, %v", path, r.Code, r.Header())
		}
	}
}

func TestFilesCanOnlyBeRead(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		if r := ask(t, method, "/"); r.Code != http.StatusMethodNotAllowed || r.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s /: %d, %v", method, r.Code, r.Header())
		}
	}
}

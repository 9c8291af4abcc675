// Package console serves the web console: static files that are built from src
// by the program in build (make ui), committed in dist and embedded here. The
// page talks to the admin API of the same origin with the token that its user
// signs in with; this package knows no secret and no API.
package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed dist
var dist embed.FS

// policy allows what the console is made of and nothing else: its own files and
// calls of its own origin. Trusted types make the browser refuse markup made
// from strings, and form-action keeps a token out of any address.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// How browsers may keep files. Only the page has a fixed name; the name of
// every other file changes with its content.
const (
	keepPage  = "no-cache" // ask each time; the answer is mostly 304
	keepAsset = "public, max-age=31536000, immutable"
)

// types are the media types of dist, so that none depends on the machine.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".svg":  "image/svg+xml",
}

type file struct {
	data []byte
	kind string
	etag string
	keep string
}

// Handler serves the console's page at / and /index.html, and its assets next
// to it. Anything else is 404, any method but GET and HEAD 405.
func Handler() http.Handler {
	files := load(dist)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		f, ok := files[r.URL.Path]
		if !ok {
			h.Set("Cache-Control", "no-store")
			http.Error(w, "there is nothing here; the console is at /, the API at /docs", http.StatusNotFound)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "the console's files can only be read", http.StatusMethodNotAllowed)
			return
		}
		h.Set("Cache-Control", f.keep)
		h.Set("Content-Type", f.kind)
		h.Set("ETag", f.etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.data))
	})
}

// load reads the embedded files by their URL path. They are part of the
// program, so a failure is a broken build and panics.
func load(embedded embed.FS) map[string]file {
	files := map[string]file{}
	entries, err := fs.ReadDir(embedded, "dist")
	if err != nil {
		panic("console: " + err.Error())
	}
	for _, e := range entries {
		data, err := fs.ReadFile(embedded, "dist/"+e.Name())
		if err != nil {
			panic("console: " + err.Error())
		}
		kind, ok := types[path.Ext(e.Name())]
		if !ok {
			panic("console: no media type for " + e.Name())
		}
		sum := sha256.Sum256(data)
		f := file{data: data, kind: kind, etag: `"` + hex.EncodeToString(sum[:16]) + `"`, keep: keepAsset}
		if strings.HasSuffix(e.Name(), ".html") {
			f.keep = keepPage
		}
		files["/"+e.Name()] = f
	}
	files["/"] = files["/index.html"]
	return files
}

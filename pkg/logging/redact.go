package logging

import (
	"bytes"
	"io"
	"net/url"
	"regexp"
	"strings"
)

// The secrets that may come near a log. A pattern that takes too much costs a
// few characters of a log line; one that takes too little costs a credential.
var (
	// signed is the part of a presigned URL that makes it one, also inside
	// of another, escaped URL.
	signed = regexp.MustCompile(`(?i)(X-Amz-(?:Signature|Credential|Security-Token)(?:=|%3D))[^&\s"'<>\\]+`)
	// token is one of the admin API (kx_), a claim token (ke_) or a device's
	// registration token (kr_).
	token = regexp.MustCompile(`\b(k[xer]_)[A-Za-z0-9_-]+`)
	// compact is a JWS: a device's password (JWT) or a signed command.
	compact = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`)
)

// Hints that a pattern may match; most lines have none of them.
var hints = [][]byte{[]byte("mz-"), []byte("MZ-"), []byte("kx_"), []byte("ke_"), []byte("kr_"), []byte("eyJ")}

// Redact replaces the secrets in s: presigned URLs' signature and credential,
// tokens and JWTs.
func Redact(s string) string { return string(redact([]byte(s))) }

func redact(line []byte) []byte {
	hit := false
	for _, h := range hints {
		hit = hit || bytes.Contains(line, h)
	}
	if !hit {
		return line
	}
	line = signed.ReplaceAll(line, []byte("${1}redacted"))
	line = token.ReplaceAll(line, []byte("${1}redacted"))
	return compact.ReplaceAll(line, []byte("jwt_redacted"))
}

// RedactURL returns what a log may show of a URL: scheme, host, path and the
// names in its query, but no value of them and no password.
func RedactURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		// Not to be trusted to have a shape; the query starts at "?".
		base, _, _ := strings.Cut(raw, "?")
		return Redact(base)
	}
	if u.User != nil {
		u.User = url.User("redacted")
	}
	if q := u.Query(); len(q) > 0 {
		for name := range q {
			q.Set(name, "redacted")
		}
		u.RawQuery = q.Encode()
	}
	return Redact(u.String())
}

// NewRedactor returns a writer that takes the secrets out of what is written to
// w. Each Write must be a whole line, as zerolog's are: a secret in two pieces
// is not found. It is the second line of defence; the first is not to log them.
func NewRedactor(w io.Writer) io.Writer { return redactor{w} }

type redactor struct{ w io.Writer }

// Write reports len(p) when the redacted line was written.
func (r redactor) Write(p []byte) (int, error) {
	line := redact(p)
	if n, err := r.w.Write(line); err != nil {
		return min(n, len(p)), err
	}
	return len(p), nil
}

package attack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// file is one entry of an archive.
type file struct {
	name, body, link string
	typ              byte
	mode             int64
	pax              map[string]string
}

func plain(name, body string) file {
	return file{name: name, body: body, typ: tar.TypeReg, mode: 0o644}
}

var script = file{name: "deploy.sh", body: "#!/bin/sh\n", typ: tar.TypeReg, mode: 0o755}

// manifest lists files as a bundle's first entry does.
func manifest(t testing.TB, files ...file) file {
	t.Helper()
	list := []any{}
	for _, f := range files {
		sum := sha256.Sum256([]byte(f.body))
		list = append(list, map[string]any{"path": f.name, "mode": fmt.Sprintf("%04o", f.mode), "size": len(f.body), "sha256": hex.EncodeToString(sum[:])})
	}
	b, err := json.Marshal(map[string]any{"schema": 1, "name": "edge", "version": "1.0.0", "deploy": map[string]any{"script": "deploy.sh"}, "files": list})
	if err != nil {
		t.Fatal(err)
	}
	return plain("manifest.json", string(b))
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: f.typ, Mode: f.mode, Size: int64(len(f.body)), Linkname: f.link, PAXRecords: f.pax})
		if err == nil {
			_, err = io.WriteString(w, f.body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func goodArchive(t testing.TB) []byte {
	t.Helper()
	return gzipOf(t, tarOf(t, manifest(t, script), script))
}

// newerArchive is the next version of goodArchive.
func newerArchive(t testing.TB) []byte {
	t.Helper()
	m := manifest(t, script)
	m.body = strings.Replace(m.body, `"1.0.0"`, `"2.0.0"`, 1)
	return gzipOf(t, tarOf(t, m, script))
}

func (s *system) upload(t testing.TB, archive []byte, headers ...string) answer {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part, err := w.CreateFormFile("file", "bundle.tar.gz")
	if err == nil {
		_, err = part.Write(archive)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.call(t, http.MethodPost, "/bundles", &b, append([]string{"Content-Type", w.FormDataContentType()}, headers...)...)
}

// uploads are archives that are no bundles.
func (x *target) uploads(t *testing.T) []attack {
	m, good := manifest(t, script), goodArchive(t)
	of := func(files ...file) []byte { return gzipOf(t, tarOf(t, append([]file{m}, files...)...)) }
	special := func(typ byte, link string) []byte {
		return of(file{name: "deploy.sh", typ: typ, mode: 0o755, link: link})
	}
	changed := func(body string, mode int64) file { f := script; f.body, f.mode = body, mode; return f }
	sparse := tarOf(t, m, file{name: script.name, body: script.body, typ: tar.TypeReg, mode: 0o755, pax: map[string]string{"X.Y.parse.major": "1"}})
	sparse = bytes.Replace(sparse, []byte("X.Y.parse.major=1"), []byte("GNU.sparse.size=8"), 1)
	zeros := plain("zeros", strings.Repeat("\x00", 30<<20))
	crc := bytes.Clone(good)
	crc[len(crc)-8] ^= 1
	folded := changed(script.body, 0o755)
	folded.name = "DEPLOY.sh"
	another := tarOf(t, manifest(t, script), changed("#!/bin/zz\n", 0o755))
	var many bytes.Buffer
	gz := gzip.NewWriter(&many)
	w := tar.NewWriter(gz)
	for i := range 20_000 {
		f := plain(fmt.Sprintf("f%d", i), "")
		if i == 0 {
			f = m
		}
		if err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: f.typ, Mode: f.mode, Size: int64(len(f.body))}); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, f.body) // an error stays in w
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_ = gz.Close() // into memory
	const bad, sum, large = fleet.CodeBadBundle, fleet.CodeChecksum, fleet.CodeTooLarge
	var list []attack
	for name, c := range map[string]struct {
		archive []byte
		status  int
		code    fleet.Code
	}{
		"nothing":                       {nil, 422, bad},
		"text":                          {[]byte("hello"), 422, bad},
		"no manifest":                   {gzipOf(t, tarOf(t, script)), 422, bad},
		"an empty manifest":             {gzipOf(t, tarOf(t, plain("manifest.json", "{}"))), 422, bad},
		"a manifest of 1 MiB":           {gzipOf(t, tarOf(t, plain("manifest.json", strings.Repeat(" ", 1<<20)))), 413, large},
		"../x":                          {of(plain("../x", "")), 422, bad},
		"a/../../x":                     {of(plain("a/../../x", "")), 422, bad},
		"/abs":                          {of(plain("/etc/cron.d/x", "")), 422, bad},
		"../x in the manifest":          {gzipOf(t, tarOf(t, manifest(t, script, plain("../x", "")), script, plain("../x", ""))), 422, bad},
		"a symbolic link":               {special(tar.TypeSymlink, "/etc/passwd"), 422, bad},
		"a hard link":                   {special(tar.TypeLink, "/etc/passwd"), 422, bad},
		"a device":                      {special(tar.TypeBlock, ""), 422, bad},
		"a FIFO":                        {special(tar.TypeFifo, ""), 422, bad},
		"setuid":                        {of(changed(script.body, 0o4755)), 422, bad},
		"the same file twice":           {of(script, script), 422, bad},
		"a name that differs by case":   {gzipOf(t, tarOf(t, manifest(t, script, folded), script, folded)), 422, bad},
		"a file missing":                {of(), 422, bad},
		"a file too much":               {of(script, plain("extra", "x")), 422, bad},
		"a control character in a name": {of(plain("a\x1bb", "")), 422, bad},
		"one bit of a file flipped":     {of(changed("#!/bin/si\n", 0o755)), 422, sum},
		"another file of the same size": {gzipOf(t, another), 422, sum},
		"another mode":                  {of(changed(script.body, 0o644)), 422, bad},
		"a wrong CRC":                   {crc, 422, sum},
		"truncated":                     {good[:len(good)/2], 422, bad},
		"a trailing byte":               {append(bytes.Clone(good), 0), 422, bad},
		"a second gzip member":          {append(bytes.Clone(good), good...), 422, bad},
		"data after the end of the tar": {gzipOf(t, append(tarOf(t, m, script), "hidden"...)), 422, bad},
		"a sparse map":                  {gzipOf(t, sparse), 422, bad},
		"a bomb":                        {gzipOf(t, tarOf(t, manifest(t, script, zeros), script, zeros)), 413, large},
		"20,000 entries":                {many.Bytes(), 422, bad},
		"above the limit":               {append(bytes.Clone(good), make([]byte, 9<<20)...), 413, large},
		"another release of a version":  {gzipOf(t, tarOf(t, manifest(t, changed("#!/bin/sh\n#\n", 0o755)), changed("#!/bin/sh\n#\n", 0o755))), 409, fleet.CodeConflict},
	} {
		list = append(list, attack{name: name, run: func(t *testing.T) { x.upload(t, c.archive).refused(t, c.status, c.code) }})
	}
	return append(list,
		attack{name: "by a viewer", run: func(t *testing.T) {
			x.upload(t, good, "Authorization", "Bearer "+x.tokens["viewer"]).refused(t, 403, fleet.CodeForbidden)
		}},
		attack{name: "by nobody", run: func(t *testing.T) { x.upload(t, good, "Authorization", "").refused(t, 401, fleet.CodeUnauthorized) }},
		attack{name: "no form", run: func(t *testing.T) {
			x.call(t, http.MethodPost, "/bundles", bytes.NewReader(good), "Content-Type", "application/gzip").refused(t, 415, fleet.CodeUnsupported)
		}},
		attack{name: "a body that ends too early", run: func(t *testing.T) {
			x.call(t, http.MethodPost, "/bundles", "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n"+string(good), "Content-Type", "multipart/form-data; boundary=b").refused(t, 400, fleet.CodeInvalid)
		}},
	)
}

package api_test

import (
	"bytes"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// rss returns this process's peak resident memory, in bytes, since the last
// reset.
func rss(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// This test measures the whole process, so nothing else may run beside it: it
// is not parallel, and the archive is on disk.
func TestAnUploadCostsLittleMemory(t *testing.T) {
	e := newEnvS3(t)
	const size = 96 << 20
	name := t.TempDir() + "/bundle.tar.gz"
	if err := os.WriteFile(name, makeBundle(t, "edge", "1.0.0", size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var frame bytes.Buffer
	w := multipart.NewWriter(&frame)
	if _, err := w.CreateFormFile("file", "bundle.tar.gz"); err != nil {
		t.Fatal(err)
	}
	head := bytes.Clone(frame.Bytes())
	_ = w.Close()
	tail := frame.Bytes()[len(head):]

	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := rss(t)
	body := unknown{io.MultiReader(bytes.NewReader(head), f, bytes.NewReader(tail))}
	var b fleet.Bundle
	e.call("POST", "/bundles", body, header{"Content-Type", w.FormDataContentType()}).into(http.StatusCreated, &b)
	grown := rss(t) - before
	t.Logf("%d MiB uploaded, resident memory grew by %d MiB, parts of %d MiB", b.Size>>20, grown>>20, b.PartSize>>20)
	if grown > 64<<20 {
		t.Errorf("resident memory grew by %d MiB", grown>>20)
	}
	if b.PartSize != 8<<20 { // of an unknown length: by the limit
		t.Errorf("parts of %d bytes", b.PartSize)
	}
}

type unknown struct{ io.Reader }

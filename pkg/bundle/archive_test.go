package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// entry is one entry of an archive under test; the zero type is a regular file.
type entry struct {
	name string
	typ  byte
	mode int64
	body string
	link string
	pax  map[string]string
}

func regular(name string, mode int64, body string) entry {
	return entry{name: name, typ: tar.TypeReg, mode: mode, body: body}
}

// manifestOf lists the regular files among entries.
func manifestOf(t testing.TB, entries []entry, changes obj) string {
	t.Helper()
	var files []any
	for _, e := range entries {
		sum := sha256.Sum256([]byte(e.body))
		files = append(files, obj{"path": e.name, "mode": fmt.Sprintf("%04o", e.mode), "size": len(e.body), "sha256": hex.EncodeToString(sum[:])})
	}
	m := obj{"schema": 1, "name": "edge", "version": "1.0.0", "deploy": obj{"script": "deploy.sh"}, "files": files}
	for k, v := range changes {
		m[k] = v
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Mode: e.mode, Size: int64(len(e.body)), Linkname: e.link, PAXRecords: e.pax}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
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
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var (
	deploySH = regular("deploy.sh", 0o755, "#!/bin/sh\n")
	model    = regular("data/model.bin", 0o644, strings.Repeat("weights ", 1000))
)

// good returns a correct archive of deploy.sh and a model, and what precedes
// the files.
func good(t testing.TB) (archive []byte, manifest entry) {
	t.Helper()
	manifest = regular(ManifestName, 0o644, manifestOf(t, []entry{deploySH, model}, nil))
	return gzipOf(t, tarOf(t, manifest, deploySH, model)), manifest
}

func TestAGoodArchiveIsDescribedExactly(t *testing.T) {
	t.Parallel()
	archive, manifest := good(t)
	sum := sha256.Sum256(archive)
	for name, r := range map[string]io.Reader{"at once": bytes.NewReader(archive), "byte by byte": iotest.OneByteReader(bytes.NewReader(archive)), "data with EOF": iotest.DataErrReader(bytes.NewReader(archive))} {
		info, err := Verify(r, Limits{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if info.Checksum != hex.EncodeToString(sum[:]) || info.Size != int64(len(archive)) || info.Expanded != 8010 ||
			string(info.ManifestBytes) != manifest.body || info.Release != ReleaseID([]byte(manifest.body)) || info.Manifest.Name != "edge" || info.Signature != nil {
			t.Errorf("%s: %+v", name, info)
		}
	}
}

func TestWhatOtherTarProgramsWriteIsTaken(t *testing.T) {
	t.Parallel()
	_, manifest := good(t)
	other := model
	other.mode = 0o664 // group write is masked
	other.pax = map[string]string{"SCHILY.xattr.user.a": "b"}
	for name, entries := range map[string][]entry{
		"directories":   {manifest, deploySH, {name: "data/", typ: tar.TypeDir, mode: 0o775}, model},
		"another order": {manifest, other, deploySH},
	} {
		padded := append(tarOf(t, entries...), make([]byte, 10240)...)
		if _, err := Verify(bytes.NewReader(gzipOf(t, padded)), Limits{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileArchivesAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	archive, manifest := good(t)
	of := func(entries ...entry) []byte { return gzipOf(t, tarOf(t, append([]entry{manifest}, entries...)...)) }
	listing := func(changes obj, entries ...entry) entry {
		return regular(ManifestName, 0o644, manifestOf(t, entries, changes))
	}
	raw := func(entries ...entry) []byte { return gzipOf(t, tarOf(t, entries...)) }
	special := func(name string, typ byte) entry { return entry{name: name, typ: typ, mode: 0o644, link: "deploy.sh"} }
	changed := func(e entry, body string, mode int64) entry { e.body, e.mode = body, mode; return e }
	flipped := tarOf(t, manifest, deploySH, model)
	flipped[bytes.Index(flipped, []byte("weights"))] ^= 1
	crc := bytes.Clone(archive)
	crc[len(crc)-8] ^= 1
	sparse := tarOf(t, manifest, deploySH, entry{name: "data/model.bin", typ: tar.TypeReg, mode: 0o644, body: model.body, pax: map[string]string{"X.Y.parse.major": "1"}})
	sparse = bytes.Replace(sparse, []byte("X.Y.parse.major=1"), []byte("GNU.sparse.size=8"), 1)
	bomb := func(size int) []byte {
		zeros := regular("zeros", 0o644, strings.Repeat("\x00", size))
		return raw(listing(nil, deploySH, zeros), deploySH, zeros)
	}
	signature := regular(SignatureName, 0o644, "x")

	const badBundle, tooLarge, checksum = fleet.CodeBadBundle, fleet.CodeTooLarge, fleet.CodeChecksum
	for name, tc := range map[string]struct {
		in   []byte
		code fleet.Code
		want string
	}{
		"empty":                 {nil, badBundle, "truncated"},
		"no gzip":               {tarOf(t, manifest), badBundle, "not a gzip file"},
		"empty tar":             {gzipOf(t, tarOf(t)), badBundle, "archive is empty"},
		"no tar":                {gzipOf(t, bytes.Repeat([]byte("text "), 1000)), badBundle, "archive: "},
		"manifest not first":    {raw(deploySH, manifest), badBundle, `first entry is "deploy.sh"`},
		"manifest a directory":  {raw(entry{name: ManifestName + "/", typ: tar.TypeDir}), badBundle, "first entry"},
		"manifest a link":       {raw(special(ManifestName, tar.TypeSymlink)), badBundle, "symbolic link"},
		"manifest too large":    {raw(regular(ManifestName, 0o644, strings.Repeat(" ", MaxManifestBytes+1))), tooLarge, "at most 262144"},
		"manifest wrong":        {raw(regular(ManifestName, 0o644, "{}")), badBundle, "files is missing"},
		"manifest twice":        {of(manifest, deploySH, model), badBundle, `"manifest.json" is not in the manifest`},
		"../x":                  {of(regular("../x", 0o644, "")), badBundle, "leaves the bundle"},
		"a/../../x":             {of(regular("a/../../x", 0o644, "")), badBundle, "leaves the bundle"},
		"/abs":                  {of(regular("/abs", 0o644, "")), badBundle, "leaves the bundle"},
		"./deploy.sh":           {of(regular("./deploy.sh", 0o755, deploySH.body)), badBundle, "shortest form"},
		"control character":     {of(regular("a\x07", 0o644, "")), badBundle, "control characters"},
		"symlink":               {of(special("data/model.bin", tar.TypeSymlink)), badBundle, "symbolic link"},
		"hard link":             {of(special("data/model.bin", tar.TypeLink)), badBundle, "hard link"},
		"character device":      {of(special("data/model.bin", tar.TypeChar)), badBundle, "character device"},
		"block device":          {of(special("data/model.bin", tar.TypeBlock)), badBundle, "block device"},
		"FIFO":                  {of(special("data/model.bin", tar.TypeFifo)), badBundle, "FIFO"},
		"setuid":                {of(changed(deploySH, deploySH.body, 0o4755)), badBundle, "setuid"},
		"setgid directory":      {of(entry{name: "data/", typ: tar.TypeDir, mode: 0o2755}), badBundle, "setuid, setgid"},
		"sparse map":            {gzipOf(t, sparse), badBundle, "sparse"},
		"duplicate":             {of(deploySH, deploySH, model), badBundle, `"deploy.sh" is there twice`},
		"case collision":        {of(deploySH, regular("DEPLOY.sh", 0o755, deploySH.body), model), badBundle, `"DEPLOY.sh" is not in the manifest`},
		"case in the manifest":  {raw(listing(nil, deploySH, changed(regular("DEPLOY.sh", 0o755, ""), "", 0o755))), badBundle, "same where case"},
		"file missing":          {of(deploySH), badBundle, `"data/model.bin" is in the manifest and not in the archive`},
		"extra file":            {of(deploySH, model, regular("extra", 0o644, "")), badBundle, `"extra" is not in the manifest`},
		"extra directory":       {of(deploySH, model, entry{name: "extra/", typ: tar.TypeDir, mode: 0o755}), badBundle, `directory "extra" holds no file`},
		"directory for a file":  {of(entry{name: "deploy.sh/", typ: tar.TypeDir, mode: 0o755}), badBundle, `directory "deploy.sh" holds no file`},
		"directory leaves":      {of(entry{name: "../", typ: tar.TypeDir, mode: 0o755}), badBundle, "leaves the bundle"},
		"one bit flipped":       {gzipOf(t, flipped), checksum, `"data/model.bin" has the SHA-256`},
		"CRC":                   {crc, checksum, "gzip"},
		"longer than listed":    {of(deploySH, changed(model, model.body+"x", 0o644)), badBundle, "has 8001 bytes"},
		"other mode":            {of(changed(deploySH, deploySH.body, 0o644)), badBundle, "has mode 0644, the manifest says 0755"},
		"truncated":             {archive[:len(archive)-1], badBundle, "truncated"},
		"truncated in the file": {archive[:len(archive)/2], badBundle, "truncated"},
		"tar ends in the file":  {gzipOf(t, tarOf(t, manifest, deploySH, model)[:4096]), badBundle, "truncated"},
		"trailing byte":         {append(bytes.Clone(archive), 0), badBundle, "trailing bytes"},
		"trailing text":         {append(bytes.Clone(archive), "hello"...), badBundle, "trailing bytes"},
		"second gzip member":    {append(bytes.Clone(archive), archive...), badBundle, "second gzip member"},
		"data after tar's end":  {gzipOf(t, append(tarOf(t, manifest, deploySH, model), "hidden"...)), badBundle, "after the end"},
		"zeros after tar's end": {gzipOf(t, append(tarOf(t, manifest, deploySH, model), make([]byte, maxPadding+1)...)), badBundle, "after the end"},
		"1,000:1 bomb":          {bomb(64 << 20), tooLarge, "more than 200:1"},
		"signature not second":  {of(deploySH, signature, model), badBundle, `"manifest.json.minisig" is not in the manifest`},
		"signature twice":       {raw(listing(obj{"counter": 1}, deploySH), signature, signature, deploySH), badBundle, "is not in the manifest"},
		"signed, no counter":    {of(signature, deploySH, model), badBundle, "no counter"},
		"signature too large":   {of(regular(SignatureName, 0o644, strings.Repeat("x", 5000)), deploySH, model), tooLarge, "at most 4096"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Verify(bytes.NewReader(tc.in), Limits{})
			if err == nil || !strings.Contains(err.Error(), tc.want) || fleet.ErrorCode(err) != tc.code {
				t.Fatalf("got %v, want %s with %q", err, tc.code, tc.want)
			}
			dir := t.TempDir()
			if _, extractErr := extractInto(dir, bytes.NewReader(tc.in)); extractErr == nil || extractErr.Error() != err.Error() {
				t.Fatalf("Extract says %v, Verify %v", extractErr, err)
			}
			if names, err := os.ReadDir(dir + "/.."); err != nil || len(names) != 1 {
				t.Fatalf("written outside: %v, %v", names, err)
			}
		})
	}
	if _, err := Verify(bytes.NewReader(bomb(7<<20)), Limits{}); err != nil {
		t.Errorf("7 MiB of zeros: %v", err)
	}
}

func TestAMillionEntriesAreRefusedAtTheFirstThatIsNotListed(t *testing.T) {
	t.Parallel()
	_, manifest := good(t)
	pr, pw := io.Pipe()
	go func() {
		gz := gzip.NewWriter(pw)
		w := tar.NewWriter(gz)
		err := w.WriteHeader(&tar.Header{Name: manifest.name, Mode: 0o644, Size: int64(len(manifest.body)), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = io.WriteString(w, manifest.body)
		}
		for i := 0; i < 1_000_000 && err == nil; i++ {
			err = w.WriteHeader(&tar.Header{Name: fmt.Sprintf("f%d", i), Mode: 0o644, Typeflag: tar.TypeReg})
			if err == nil {
				err = gz.Flush()
			}
		}
		pw.CloseWithError(errors.Join(err, w.Close(), gz.Close()))
	}()
	_, err := Verify(pr, Limits{})
	pr.CloseWithError(io.ErrClosedPipe)
	if err == nil || !strings.Contains(err.Error(), `"f0" is not in the manifest`) {
		t.Fatal(err)
	}
}

func TestTheConfiguredLimitBoundsTheArchiveAndWhatComesOut(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 100_000)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		body  string
		limit func(archive int64) int64
		want  string
	}{
		"exactly":      {string(noise), func(n int64) int64 { return n }, ""},
		"one byte":     {string(noise), func(n int64) int64 { return n - 1 }, "larger than"},
		"listed sizes": {strings.Repeat("x", 100_000), func(int64) int64 { return 20_000 }, "files are larger than 80000 bytes"},
		"tar headers":  {strings.Repeat("x", 79_900), func(int64) int64 { return 20_000 }, "expands to more than 80000 bytes"},
	} {
		f := regular("data", 0o644, tc.body)
		archive := gzipOf(t, tarOf(t, regular(ManifestName, 0o644, manifestOf(t, []entry{deploySH, f}, nil)), deploySH, f))
		limit := tc.limit(int64(len(archive)))
		src := &countingReader{r: bytes.NewReader(archive)}
		if name == "one byte" {
			src.r = bytes.NewReader(append(archive, make([]byte, 1<<20)...))
		}
		_, err := Verify(src, Limits{MaxBytes: limit})
		if tc.want == "" && err != nil || tc.want != "" && (fleet.ErrorCode(err) != fleet.CodeTooLarge || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if src.n > limit+1 {
			t.Errorf("%s: %d bytes were read, limit %d", name, src.n, limit)
		}
	}
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func TestALostConnectionIsNotABadBundle(t *testing.T) {
	t.Parallel()
	archive, _ := good(t)
	for cut := range len(archive) + 1 {
		for _, lost := range []error{errors.New("connection reset"), fmt.Errorf("proxy: %w", io.EOF)} {
			_, err := Verify(io.MultiReader(bytes.NewReader(archive[:cut]), iotest.ErrReader(lost)), Limits{})
			if !errors.Is(err, lost) || fleet.ErrorCode(err) != fleet.CodeInternal {
				t.Fatalf("%v at %d: %v", lost, cut, err)
			}
		}
		if cut == len(archive) {
			break
		}
		if _, err := Verify(bytes.NewReader(archive[:cut]), Limits{}); fleet.ErrorCode(err) != fleet.CodeBadBundle {
			t.Fatalf("ended at %d: %v", cut, err)
		}
	}
}

func TestNoFlippedBitInsideTheArchiveIsTakenForTheSameRelease(t *testing.T) {
	t.Parallel()
	archive, _ := good(t)
	want, err := Verify(bytes.NewReader(archive), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		changed := bytes.Clone(archive)
		changed[rapid.IntRange(0, len(archive)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		info, err := Verify(bytes.NewReader(changed), Limits{})
		// A flip in gzip's own header (time, OS) changes nothing but the checksum.
		if err == nil && (info.Checksum == want.Checksum || info.Release != want.Release) {
			t.Fatalf("taken: %+v", info)
		}
	})
}

func TestVerifyTakesNoMoreMemoryForALargerBundle(t *testing.T) {
	// Not parallel: it looks at the heap of the process.
	size := 256 << 20
	pr, pw := io.Pipe()
	go func() {
		pw.CloseWithError(writeNoise(pw, size))
	}()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	info, err := Verify(pr, Limits{})
	runtime.ReadMemStats(&after)
	if err != nil || info.Expanded < int64(size) {
		t.Fatalf("%+v, %v", info, err)
	}
	// Everything ever allocated, freed or not, on both sides of the pipe.
	if got := after.TotalAlloc - before.TotalAlloc; got > 16<<20 {
		t.Fatalf("%d MiB allocated for a bundle of %d MiB", got>>20, size>>20)
	}
}

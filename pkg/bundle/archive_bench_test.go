package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// writeNoise writes a stored (level 0) bundle with one large file of repeated noise.
func writeNoise(w io.Writer, size int) error {
	chunk := make([]byte, 64<<10)
	if _, err := rand.Read(chunk); err != nil {
		return err
	}
	sum := sha256.New()
	for range size / len(chunk) {
		sum.Write(chunk)
	}
	script := sha256.Sum256([]byte(deploySH.body))
	m := Manifest{Schema: 1, Name: "large", Version: "1.0.0", Deploy: Script{"deploy.sh", 1}, Files: []File{
		{"deploy.sh", "0755", int64(len(deploySH.body)), hex.EncodeToString(script[:])},
		{"model", "0644", int64(size), hex.EncodeToString(sum.Sum(nil))},
	}}
	manifest, err := m.encode()
	if err != nil {
		return err
	}
	gz, err := gzip.NewWriterLevel(w, gzip.NoCompression)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(gz)
	if err := writeBytes(tw, ManifestName, manifest); err != nil {
		return err
	}
	if err := tw.WriteHeader(header("deploy.sh", 0o755, int64(len(deploySH.body)))); err != nil {
		return err
	}
	if _, err := io.WriteString(tw, deploySH.body); err != nil {
		return err
	}
	if err := tw.WriteHeader(header("model", 0o644, int64(size))); err != nil {
		return err
	}
	for range size / len(chunk) {
		if _, err := tw.Write(chunk); err != nil {
			return err
		}
	}
	return errors.Join(tw.Close(), gz.Close())
}

func BenchmarkVerify(b *testing.B) {
	var stored bytes.Buffer
	if err := writeNoise(&stored, 32<<20); err != nil {
		b.Fatal(err)
	}
	program, err := os.ReadFile(os.Args[0]) // this test's own binary: what bundles hold
	if err != nil {
		b.Fatal(err)
	}
	binary := regular("program", 0o755, string(program))
	for name, archive := range map[string][]byte{
		"stored":  stored.Bytes(),
		"program": gzipOf(b, tarOf(b, regular(ManifestName, 0o644, manifestOf(b, []entry{deploySH, binary}, nil)), deploySH, binary)),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(archive)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Verify(bytes.NewReader(archive), Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzVerifyAndExtractAgreeAndStayInside(f *testing.F) {
	archive, manifest := good(f)
	f.Add(tarOf(f, manifest, deploySH, model))
	f.Add(tarOf(f, manifest, entry{name: "data/", typ: tar.TypeDir, mode: 0o755}, deploySH, model))
	f.Add(archive)
	f.Fuzz(func(t *testing.T, data []byte) {
		in := data
		if !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
			in = gzipOf(t, data) // so that the fuzzer reaches tar and the manifest
		}
		info, err := Verify(bytes.NewReader(in), Limits{MaxBytes: 1 << 20})
		dir := t.TempDir()
		extracted, extractErr := extractInto(dir, bytes.NewReader(in))
		if (err == nil) != (extractErr == nil) && fleet.ErrorCode(err) != fleet.CodeTooLarge {
			t.Fatalf("Verify: %v, Extract: %v", err, extractErr)
		}
		if err != nil {
			return
		}
		checked, err := Check(dir)
		if err != nil || checked.Release != info.Release || extracted.Checksum != info.Checksum {
			t.Fatalf("extracted, but Check says %v", err)
		}
	})
}

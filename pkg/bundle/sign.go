package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"time"

	"aead.dev/minisign"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// SigningKey is a release key's secret half. It never leaves the machine on
// which bundles are signed.
type SigningKey struct{ key minisign.PrivateKey }

// NewSigningKey makes a release key.
func NewSigningKey() (SigningKey, error) {
	_, key, err := minisign.GenerateKey(nil)
	if err != nil {
		return SigningKey{}, fmt.Errorf("make release key: %w", err)
	}
	return SigningKey{key}, nil
}

// ErrPassword says that a key file is encrypted and that the password does not
// open it.
var ErrPassword = errors.New("the password does not open the key")

// Encrypted reports whether a minisign secret key file needs a password.
func Encrypted(file []byte) bool { return minisign.IsEncrypted(file) }

// ParseSigningKey reads a minisign secret key file, also one that the minisign
// program has made. password is ignored where the file needs none. Opening an
// encrypted one takes a second and 1 GiB of memory: that is the format's.
func ParseSigningKey(file []byte, password string) (SigningKey, error) {
	var key minisign.PrivateKey
	if Encrypted(file) {
		key, err := minisign.DecryptKey(password, file)
		if err != nil {
			return SigningKey{}, ErrPassword
		}
		return SigningKey{key}, nil
	}
	if err := key.UnmarshalText(file); err != nil {
		return SigningKey{}, fmt.Errorf("read release key: %w", err)
	}
	return SigningKey{key}, nil
}

// File returns the secret key file, which the minisign program reads too; with a
// password it is encrypted.
func (k SigningKey) File(password string) ([]byte, error) {
	if password == "" {
		return k.key.MarshalText()
	}
	return minisign.EncryptKey(password, k.key)
}

// Public returns the public half.
func (k SigningKey) Public() ReleaseKey {
	public, _ := k.key.Public().(minisign.PublicKey) // always one
	return ReleaseKey{public}
}

// Sign signs message as the minisign program does by default (prehashed).
// comment becomes part of the trusted comment and must be one line.
func (k SigningKey) Sign(message []byte, now time.Time, comment string) ([]byte, error) {
	r := minisign.NewReader(bytes.NewReader(message))
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	trusted := fmt.Sprintf("timestamp:%d\t%s", now.Unix(), comment)
	return r.SignWithComments(k.key, trusted, "signature by kernex release key "+k.Public().ID()), nil
}

// SignManifest signs the exact bytes of a built manifest, which must have a
// counter: a device could not tell an old signed release from a new one else.
func (k SigningKey) SignManifest(manifest []byte, now time.Time) ([]byte, error) {
	m, err := ParseManifest(manifest)
	if err != nil {
		return nil, err
	}
	if m.Counter == 0 {
		return nil, bad("%s has no counter; a signed release needs one, higher with each release, or an old one could be played back", ManifestName)
	}
	return k.Sign(manifest, now, "file:"+ManifestName+"\t"+m.Name+" "+m.Version)
}

// ReplaceSignature copies the archive r to w with signature in the place of the
// one that it has or has not. What r holds is checked as by Verify and so is
// what was written, whose description is returned; after an error w holds
// nothing of use.
func ReplaceSignature(r io.Reader, w io.Writer, signature []byte, limits Limits) (*Info, error) {
	pr, pw := io.Pipe()
	var info *Info
	var verifyErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		info, verifyErr = Verify(pr, limits)
		pr.CloseWithError(verifyErr)
	}()
	copyErr := copySigned(r, io.MultiWriter(w, pw), signature)
	pw.CloseWithError(copyErr)
	<-done
	if copyErr != nil && !errors.Is(copyErr, verifyErr) {
		return nil, fmt.Errorf("sign archive: %w", copyErr)
	}
	if verifyErr != nil {
		return nil, fmt.Errorf("sign archive: %w", verifyErr)
	}
	return info, nil
}

// copySigned copies entry by entry; Verify sees to what may be in it.
func copySigned(r io.Reader, w io.Writer, signature []byte) error {
	in, err := gzip.NewReader(r)
	if err != nil {
		return fleet.Errorf(fleet.CodeBadBundle, "archive: %v", err)
	}
	src, gz := tar.NewReader(in), gzip.NewWriter(w)
	dst := tar.NewWriter(gz)
	for n := 0; ; n++ {
		h, err := src.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fleet.Errorf(fleet.CodeBadBundle, "archive: %v", err)
		}
		if n == 1 {
			if err := writeBytes(dst, SignatureName, signature); err != nil {
				return err
			}
		}
		if n > 0 && h.Name == SignatureName {
			continue
		}
		entry := header(h.Name, h.FileInfo().Mode().Perm(), h.Size)
		entry.Typeflag = h.Typeflag
		if err := dst.WriteHeader(entry); err != nil {
			return err
		}
		if _, err := io.Copy(dst, src); err != nil { //nolint:gosec // the reader of what is written counts
			return err
		}
	}
	if err := dst.Close(); err != nil {
		return err
	}
	return gz.Close()
}

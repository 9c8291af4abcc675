package objectstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// partSize is the size of a part of an upload. An upload holds two of them in
// memory at most; 10,000 parts, the S3 limit, make 78 GiB.
const partSize = 8 << 20

// keyPrefix is where bundles live, so that a bucket can hold other things too.
const keyPrefix = "bundles/"

// MaxPresign is the longest life of a presigned URL (security rules).
const MaxPresign = 15 * time.Minute

// Info describes a stored object.
type Info struct {
	Key          string
	Size         int64     // bytes
	ETag         string    // as in If-Match, without quotes; not a digest of the content
	LastModified time.Time // the store's clock
}

// NewKey returns a fresh random key. A bundle is uploaded under its final key
// while it is checked; only a row that names the key makes it exist, so nothing
// has to be copied afterwards and a failed upload is invisible.
func NewKey() string { return keyPrefix + strings.ToLower(rand.Text()) }

// Put streams r into the object key. size is its length in bytes or -1; memory
// use does not depend on it. If r fails its error is returned and nothing is
// stored; so a reader that checks while it is read decides about the upload.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, size int64) (Info, error) {
	src := &source{r: r}
	first := make([]byte, partSize)
	n, err := io.ReadFull(src, first)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return Info{}, err
	}
	// A signed Content-MD5 guards each part. The other way, a signature in each
	// chunk of the body, makes the private gateway (versitygw 1.8.0) leave the
	// last chunk of an empty object on the connection, where it is then taken
	// for the next request and answered 400.
	opts := minio.PutObjectOptions{ContentType: "application/gzip", PartSize: partSize,
		SendContentMd5: true, DisableContentSha256: true}
	var info minio.UploadInfo
	if n < partSize {
		if err := src.checkSize(size); err != nil {
			return Info{}, err
		}
		info, err = s.core.Client.PutObject(ctx, s.bucket, key, bytes.NewReader(first[:n]), int64(n), opts)
	} else {
		src.want = size
		info, err = s.core.Client.PutObject(ctx, s.bucket, key, io.MultiReader(bytes.NewReader(first), src.toEnd()), -1, opts)
	}
	if src.err != nil {
		return Info{}, src.err
	}
	if err != nil {
		return Info{}, translate("upload", err)
	}
	return Info{Key: key, Size: info.Size, ETag: info.ETag, LastModified: info.LastModified}, nil
}

// source counts what is read and remembers why reading failed, which the client
// would wrap beyond recognition.
type source struct {
	r    io.Reader
	n    int64
	want int64
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *source) checkSize(want int64) error {
	if want >= 0 && s.n != want {
		return fmt.Errorf("upload: %d bytes came, %d were announced", s.n, want)
	}
	return nil
}

// toEnd reads the rest and fails at its end if the length is wrong, so that the
// upload is aborted instead of completed.
func (s *source) toEnd() io.Reader { return endCheck{s} }

type endCheck struct{ s *source }

func (e endCheck) Read(p []byte) (int, error) {
	n, err := e.s.Read(p)
	if errors.Is(err, io.EOF) {
		if bad := e.s.checkSize(e.s.want); bad != nil {
			e.s.err = bad
			return n, bad
		}
	}
	return n, err
}

// Get opens the object. The caller closes the reader.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, Info, error) {
	body, info, _, err := s.core.GetObject(ctx, s.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, Info{}, translate("read an object", err)
	}
	return body, infoOf(info), nil
}

// Stat describes the object.
func (s *Store) Stat(ctx context.Context, key string) (Info, error) {
	info, err := s.core.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return Info{}, translate("look at an object", err)
	}
	return infoOf(info), nil
}

func infoOf(o minio.ObjectInfo) Info {
	return Info{Key: o.Key, Size: o.Size, ETag: strings.Trim(o.ETag, `"`), LastModified: o.LastModified}
}

// Delete removes the object; one that is not there is fine.
func (s *Store) Delete(ctx context.Context, key string) error {
	return translate("delete an object", s.core.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{}))
}

// Checksum reads the object from the store and returns its SHA-256 in hex and
// its size: what is really there, whatever a row says.
func (s *Store) Checksum(ctx context.Context, key string) (sum string, size int64, err error) {
	body, _, err := s.Get(ctx, key)
	if err != nil {
		return "", 0, err
	}
	defer body.Close()
	h := sha256.New()
	if size, err = io.Copy(h, body); err != nil {
		return "", 0, translate("read an object", err)
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}

// Presign returns a URL at which anybody can GET the object until expires. It
// is computed here, without asking the store, so it also works for an object
// that is not there. ttl is cut to MaxPresign. The URL is a secret: logs get
// logging.RedactURL of it.
func (s *Store) Presign(ctx context.Context, key string, ttl time.Duration) (signed string, expires time.Time, err error) {
	ttl = min(ttl, MaxPresign).Truncate(time.Second)
	u, err := s.public.PresignedGetObject(ctx, s.bucket, key, ttl, url.Values{})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("presign: %w", err)
	}
	// The signature's own second, not ours: it counts from there.
	at, err := time.Parse("20060102T150405Z", u.Query().Get("X-Amz-Date"))
	if err != nil {
		return "", time.Time{}, fmt.Errorf("presign: read the date: %w", err)
	}
	return u.String(), at.Add(ttl), nil
}

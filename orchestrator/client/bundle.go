package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// upload is the one file of a multipart body: read from src as it is sent, so
// that a bundle of any size costs one buffer, and again from its start on each
// attempt.
type upload struct {
	src        io.ReaderAt
	size       int64
	progress   func(sent int64)
	head, tail []byte
	kind       string
}

func newUpload(name string, src io.ReaderAt, size int64, progress func(sent int64)) (*upload, error) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if _, err := w.CreateFormFile("file", name); err != nil {
		return nil, fmt.Errorf("make the upload: %w", err)
	}
	head := bytes.Clone(b.Bytes())
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("make the upload: %w", err)
	}
	return &upload{src: src, size: size, progress: progress, head: head, tail: b.Bytes()[len(head):], kind: w.FormDataContentType()}, nil
}

func (u *upload) attach(req *http.Request) {
	req.GetBody = func() (io.ReadCloser, error) {
		file := &counted{r: io.NewSectionReader(u.src, 0, u.size), report: u.progress}
		return io.NopCloser(io.MultiReader(bytes.NewReader(u.head), file, bytes.NewReader(u.tail))), nil
	}
	req.Body, _ = req.GetBody()
	req.ContentLength = int64(len(u.head)) + u.size + int64(len(u.tail))
	req.Header.Set("Content-Type", u.kind)
	req.Header.Set("Expect", "100-continue")
}

// counted reports how much of the file has been handed to the connection.
type counted struct {
	r      io.Reader
	n      int64
	report func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.report != nil && n > 0 {
		c.report(c.n)
	}
	return n, err
}

// UploadBundle sends the size bytes of src, a bundle archive called name.
// progress, when set, is told the bytes sent so far, from the goroutine that
// sends; it starts again when the upload does. The same release again gives
// the bundle that is there; the same version with other content is
// CodeConflict.
func (c *Client) UploadBundle(ctx context.Context, name string, src io.ReaderAt, size int64, progress func(sent int64)) (fleet.Bundle, error) {
	var b fleet.Bundle
	u, err := newUpload(name, src, size, progress)
	if err != nil {
		return b, err
	}
	return b, c.call(ctx, request{method: http.MethodPost, path: "/bundles", upload: u}, &b)
}

// Bundles lists bundles, newest first; name "" is all names, limit 0 is all.
func (c *Client) Bundles(ctx context.Context, name string, limit int) (fleet.List[fleet.Bundle], error) {
	q := url.Values{}
	set(q, "name", name)
	return list[fleet.Bundle](ctx, c, "/bundles", q, limit)
}

// Bundle returns one bundle with its manifest.
func (c *Client) Bundle(ctx context.Context, id string) (fleet.Bundle, error) {
	var b fleet.Bundle
	return b, c.get(ctx, path("bundles", id), &b)
}

// VerifyBundle asks whether the bytes in the object store still have checksum
// (SHA-256, hex).
func (c *Client) VerifyBundle(ctx context.Context, id, checksum string) (bool, error) {
	body := struct {
		Checksum string `json:"checksum_sha256"`
	}{checksum}
	var answer struct {
		Valid bool `json:"valid"`
	}
	err := c.post(ctx, path("bundles", id, "verify"), body, &answer)
	return answer.Valid, err
}

// DeleteBundle removes a bundle; CodeConflict says what still uses it.
func (c *Client) DeleteBundle(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: path("bundles", id)}, nil)
}

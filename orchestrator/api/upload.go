package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

const uploadPath = "/bundles"

// uploadIdle is how long an upload may stand still, and uploadExtra what
// multipart adds to the archive, in bytes.
const (
	uploadIdle  = 60 * time.Second
	uploadExtra = 64 << 10
)

// registerUpload adds POST /bundles. It is a plain handler, because huma would
// keep the whole body.
func (a *API) registerUpload() {
	op := &huma.Operation{
		OperationID: "upload-bundle", Method: http.MethodPost, Path: uploadPath, Summary: "Upload a bundle", Tags: []string{"bundles"},
		Description: "The archive is checked while it is stored. The same release again answers 200 and adds the signature that it brings; the same version with another release is a conflict. In trust mode required the manifest must be signed by a release key.",
		Extensions:  map[string]any{"x-kernex-role": string(fleet.RoleOperator)},
		Parameters:  []*huma.Param{{Name: "Idempotency-Key", In: "header", Schema: &huma.Schema{Type: "string"}}},
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"multipart/form-data": {Schema: &huma.Schema{
			Type: "object", Required: []string{"file"}, Properties: map[string]*huma.Schema{"file": {Type: "string", Format: "binary", Description: "tar.gz with manifest.json as its first entry"}},
		}}}},
		Responses: map[string]*huma.Response{},
	}
	answerDocs(a.huma, op, fleet.Bundle{}, "application/json", http.StatusOK, http.StatusCreated)
	a.huma.OpenAPI().AddOperation(op)
	a.mux.HandleFunc("POST "+base+uploadPath, a.upload)
}

func (a *API) upload(w http.ResponseWriter, r *http.Request) {
	c := callerOf(r.Context())
	err := allow(c, fleet.RoleOperator)
	if err == nil && r.ContentLength > a.cfg.MaxBundle+uploadExtra {
		err = fleet.Errorf(fleet.CodeTooLarge, "the body is %d bytes, at most %d are allowed for a bundle", r.ContentLength, a.cfg.MaxBundle)
	}
	var status int
	var answer any
	if err == nil {
		status, answer, err = a.storeUpload(w, r, c)
	}
	if err != nil {
		w.Header().Set("Connection", "close") // the rest of the body is not worth reading
		a.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // the client is gone
}

// storeUpload streams the one file of the body into the store, checks it on the
// way and makes its row. After an error, and for a release that is there
// already, the object is gone again.
func (a *API) storeUpload(w http.ResponseWriter, r *http.Request, c caller) (status int, answer any, err error) {
	ctx, once, err := uploadOnce(r)
	if err != nil {
		return 0, nil, err
	}
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{}) // the read side has its own, moving one
	body := http.MaxBytesReader(w, r.Body, a.cfg.MaxBundle+uploadExtra)
	file, next, err := uploadPart(r, patientReader{r: body, rc: rc})
	if err != nil {
		return 0, nil, err
	}
	key := a.cfg.Objects.NewKey()
	kept := false
	defer func() {
		if !kept {
			a.discard(ctx, key)
		}
	}()
	b, err := a.receive(ctx, key, file, next, r.ContentLength)
	if err != nil {
		return 0, nil, err
	}
	_ = rc.SetReadDeadline(time.Now().Add(readLimit))
	_ = rc.SetWriteDeadline(time.Now().Add(writeLimit))
	if once != nil {
		once.Request = sha256.Sum256([]byte("POST\n" + r.URL.Path + "\n" + b.Checksum))
		ctx = fleet.WithOnce(ctx, *once)
	}
	var done *earlier
	if err := a.replay(ctx); errors.As(err, &done) {
		return done.status, done, nil
	} else if err != nil {
		return 0, nil, err
	}
	stored, created, err := a.cfg.Store.CreateBundle(ctx, b, c.actor)
	if errors.Is(err, fleet.ErrRepeated) && errors.As(a.replay(ctx), &done) {
		return done.status, done, nil
	}
	if err != nil {
		return 0, nil, err
	}
	if kept = created; created {
		return http.StatusCreated, stored, nil
	}
	return http.StatusOK, stored, nil
}

// uploadOnce takes the Idempotency-Key; what is asked for is known only when the
// archive has been read.
func uploadOnce(r *http.Request) (context.Context, *fleet.Once, error) {
	ctx, err := withOnce(r, nil)
	if err != nil {
		return ctx, nil, err
	}
	if o, ok := fleet.OnceFrom(ctx); ok {
		return r.Context(), &o, nil
	}
	return r.Context(), nil, nil
}

// patientReader gives the client uploadIdle for each read.
type patientReader struct {
	r  io.Reader
	rc *http.ResponseController
}

func (p patientReader) Read(b []byte) (int, error) {
	_ = p.rc.SetReadDeadline(time.Now().Add(uploadIdle))
	return p.r.Read(b)
}

// uploadPart finds the part "file", which must be the first and only one; next
// reports what comes after it.
func uploadPart(r *http.Request, body io.Reader) (file io.Reader, next func() error, err error) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" || params["boundary"] == "" {
		return nil, nil, fleet.Errorf(fleet.CodeUnsupported, "Content-Type is %.80q, send multipart/form-data with a part called file", r.Header.Get("Content-Type"))
	}
	mr := multipart.NewReader(body, params["boundary"])
	part, err := mr.NextRawPart()
	if err != nil {
		return nil, nil, fleet.Wrap(codeOfRead(err), err, "the body is no multipart/form-data with a part called file")
	}
	if part.FormName() != "file" {
		return nil, nil, fleet.Errorf(fleet.CodeInvalid, "the first part is called %.40q, it must be file", part.FormName())
	}
	return part, func() error {
		switch extra, err := mr.NextRawPart(); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return bodyError(err)
		default:
			return fleet.Errorf(fleet.CodeInvalid, "the part %.40q comes after file, which must be the only one", extra.FormName())
		}
	}, nil
}

func codeOfRead(err error) fleet.Code {
	if p := problemOf(err); p.Code != fleet.CodeInternal {
		return p.Code
	}
	return fleet.CodeInvalid
}

// receive stores file under key while it is verified and hashed, in one pass and
// in constant memory. length is the request's Content-Length, the bound by which
// the size of the parts is chosen; below zero is unknown.
func (a *API) receive(ctx context.Context, key string, file io.Reader, next func() error, length int64) (fleet.Bundle, error) {
	if length < 0 {
		length = a.cfg.MaxBundle
	}
	pr, pw := io.Pipe()
	v := &verified{src: file, next: next, pipe: pw, parts: newPartHasher(fleet.PartSize(length)), done: make(chan struct{})}
	go func() {
		defer close(v.done)
		v.info, v.err = bundle.Verify(pr, bundle.Limits{MaxBytes: a.cfg.MaxBundle})
		if v.err != nil {
			_ = pr.CloseWithError(errRefused) // ends the upload at once
		}
	}()
	err := a.cfg.Objects.Put(ctx, key, v, -1)
	_ = pw.CloseWithError(io.ErrUnexpectedEOF) // a Put that stopped early ends the verification too
	<-v.done
	switch {
	case v.cause != nil:
		return fleet.Bundle{}, v.cause
	case err != nil:
		return fleet.Bundle{}, fmt.Errorf("store the archive: %w", err)
	case v.err != nil:
		return fleet.Bundle{}, fmt.Errorf("verify the archive: %w", v.err)
	}
	return fleet.Bundle{
		ID: fleet.NewID("bun"), Name: v.info.Manifest.Name, Version: v.info.Manifest.Version, Release: v.info.Release,
		Checksum: v.info.Checksum, Size: v.info.Size, Expanded: v.info.Expanded, Manifest: v.info.ManifestBytes,
		Signature: string(v.info.Signature), PartSize: v.parts.size, Parts: v.parts.sums(), ObjectKey: key,
	}, nil
}

var errRefused = errors.New("the bundle was refused")

// verified is what the store reads: the file, but its end comes only when the
// bundle is whole, so that the store keeps nothing else.
type verified struct {
	src   io.Reader
	next  func() error
	pipe  *io.PipeWriter
	parts *partHasher

	done  chan struct{} // the verification has ended
	info  *bundle.Info
	err   error
	cause error // why Read failed
}

// Read implements io.Reader.
func (v *verified) Read(p []byte) (int, error) {
	if v.cause != nil {
		return 0, v.cause
	}
	n, err := v.src.Read(p)
	if n > 0 {
		v.parts.write(p[:n])
		if _, werr := v.pipe.Write(p[:n]); werr != nil {
			<-v.done
			v.cause = v.err
			if v.cause == nil {
				v.cause = werr
			}
			return 0, v.cause
		}
	}
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		v.cause = bodyError(err)
		return n, v.cause
	}
	if v.cause = v.next(); v.cause == nil {
		_ = v.pipe.Close()
		<-v.done
		v.cause = v.err
	}
	if v.cause != nil {
		return n, v.cause
	}
	return n, io.EOF
}

// partHasher digests a stream in parts of one size.
type partHasher struct {
	size, left int64
	h          hash.Hash
	done       []string
}

func newPartHasher(size int64) *partHasher {
	return &partHasher{size: size, left: size, h: sha256.New()}
}

func (p *partHasher) write(b []byte) {
	for len(b) > 0 {
		n := min(int64(len(b)), p.left)
		_, _ = p.h.Write(b[:n]) // a hash never fails
		if p.left -= n; p.left == 0 {
			p.cut()
		}
		b = b[n:]
	}
}

func (p *partHasher) cut() {
	p.done = append(p.done, hex.EncodeToString(p.h.Sum(nil)))
	p.h.Reset()
	p.left = p.size
}

func (p *partHasher) sums() []string {
	if p.left < p.size {
		p.cut()
	}
	return p.done
}

// answerDocs documents the answers of a plain handler as register does.
func answerDocs(h huma.API, op *huma.Operation, body any, kind string, statuses ...int) {
	schemas := h.OpenAPI().Components.Schemas
	for _, s := range statuses {
		op.Responses[strconv.Itoa(s)] = &huma.Response{Description: http.StatusText(s), Content: map[string]*huma.MediaType{kind: {Schema: huma.SchemaFromType(schemas, typeOf(body))}}}
	}
	op.Responses["default"] = &huma.Response{Description: "Error", Content: map[string]*huma.MediaType{"application/problem+json": {Schema: huma.SchemaFromType(schemas, typeOf(Problem{}))}}}
}

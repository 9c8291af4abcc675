// Package objectstore keeps bundles in an S3-compatible store. It knows bytes
// and keys; what a bundle is, is decided elsewhere.
package objectstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Config names a bucket and who may use it.
type Config struct {
	// Endpoint is the store's base URL as this program reaches it.
	Endpoint string
	// PublicURL is the base URL as devices reach it; the signature of a
	// presigned URL covers the host. Empty means Endpoint.
	PublicURL string
	// Region is part of every signature. Empty means us-east-1.
	Region               string
	AccessKey, SecretKey string
	Bucket               string
	// AllowInsecure permits http:// URLs: for development only.
	AllowInsecure bool
}

// Store is a bucket. It is safe for concurrent use.
type Store struct {
	core   *minio.Core
	public *minio.Client // presigns for PublicURL and sends nothing
	bucket string
}

// New checks the configuration; it does not connect.
func New(cfg Config) (*Store, error) {
	if cfg.PublicURL == "" {
		cfg.PublicURL = cfg.Endpoint
	}
	if cfg.Region == "" {
		cfg.Region = "us-east-1"
	}
	if cfg.AccessKey == "" || cfg.SecretKey == "" || cfg.Bucket == "" {
		return nil, errors.New("object store: access key, secret key and bucket are needed")
	}
	internal, err := newClient(cfg, "endpoint", cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	public, err := newClient(cfg, "public URL", cfg.PublicURL)
	if err != nil {
		return nil, err
	}
	return &Store{core: &minio.Core{Client: internal}, public: public, bucket: cfg.Bucket}, nil
}

// newClient makes a client for one base URL. The region is always set: without
// it the client would ask the store for it, also when it only presigns.
// TrailingHeaders stay off: not every store understands them.
func newClient(cfg Config, what, base string) (*minio.Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("object store: the %s %q is not an http(s) URL", what, base)
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("object store: the %s must be scheme://host[:port] only", what)
	}
	if u.Scheme == "http" && !cfg.AllowInsecure {
		return nil, fmt.Errorf("object store: the %s %s is not encrypted, which only development allows", what, base)
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds:  credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, ""),
		Secure: u.Scheme == "https",
		Region: cfg.Region,
		// Three attempts: the caller has a deadline and the agent or the
		// operator tries again anyway; the default of 10 takes minutes.
		MaxRetries: 3,
	})
	if err != nil {
		return nil, fmt.Errorf("object store: the %s: %w", what, err)
	}
	return client, nil
}

// EnsureBucket makes the bucket unless it exists.
func (s *Store) EnsureBucket(ctx context.Context) error {
	exists, err := s.core.BucketExists(ctx, s.bucket)
	if err != nil {
		return translate("look for the bucket", err)
	}
	if exists {
		return nil
	}
	err = s.core.MakeBucket(ctx, s.bucket, minio.MakeBucketOptions{})
	switch minio.ToErrorResponse(err).Code {
	case "BucketAlreadyOwnedByYou", "BucketAlreadyExists": // another replica was faster
		return nil
	}
	return translate("make the bucket", err)
}

// Ready returns nil when the store answers and has the bucket.
func (s *Store) Ready(ctx context.Context) error {
	exists, err := s.core.BucketExists(ctx, s.bucket)
	if err != nil {
		return translate("ask the object store", err)
	}
	if !exists {
		return fleet.Errorf(fleet.CodeUnavailable, "the object store has no bucket %s", s.bucket)
	}
	return nil
}

// translate gives an error of the store its code: not_found, or unavailable for
// everything that is not the caller's fault. A cancelled context stays itself.
func translate(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", doing, err)
	}
	// A HEAD has no body and so no code, only the status.
	resp := minio.ToErrorResponse(err)
	if resp.Code == minio.NoSuchKey || (resp.StatusCode == http.StatusNotFound && resp.Code != minio.NoSuchBucket) {
		return fleet.Wrap(fleet.CodeNotFound, fmt.Errorf("%s: %w", doing, err), "the object store has no such object")
	}
	return fleet.Wrap(fleet.CodeUnavailable, fmt.Errorf("%s: %w", doing, err), "the object store does not answer as it should")
}

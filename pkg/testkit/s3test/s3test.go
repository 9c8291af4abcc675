// Package s3test gives a test the real private object store. It stands apart
// from testkit because it links the whole gateway into the test binary, which
// then also serves as the gateway's program: no other binary has to be built.
package s3test

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/s3gw"
)

// init turns a test binary that s3gw started into the gateway, before any
// TestMain or test runs.
func init() {
	if s3gw.IsChild() {
		os.Exit(s3gw.Main())
	}
}

// Store is an object store for one test.
type Store struct {
	// URL is http://127.0.0.1:port.
	URL                          string
	AccessKey, SecretKey, Region string
	// Gateway is the running process, for tests that stop or kill it.
	Gateway *s3gw.Store
	// Dir holds its files.
	Dir string
}

// Start runs an empty store that is stopped, and whose files are removed, when
// the test ends.
func Start(t testing.TB) *Store {
	t.Helper()
	s := &Store{
		AccessKey: "test-" + strings.ToLower(rand.Text()[:8]), SecretKey: rand.Text(),
		Region: s3gw.DefaultRegion, Dir: filepath.Join(t.TempDir(), "s3"),
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var err error
	s.Gateway, err = s3gw.Start(ctx, s3gw.Config{
		DataDir: s.Dir, Listen: "127.0.0.1:0", AccessKey: s.AccessKey, SecretKey: s.SecretKey, Logger: zerolog.Nop(),
	})
	if err != nil {
		t.Fatalf("start the object store: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Gateway.Stop(context.Background()); err != nil {
			t.Errorf("stop the object store: %v", err)
		}
	})
	s.URL = s.Gateway.URL()
	return s
}

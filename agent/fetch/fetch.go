// Package fetch downloads archives: resumable over restarts, each part checked
// by its digest, stopped at the size that the signed command names.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Bounds of one download.
const (
	maxBadParts = 3           // parts that did not match before the source counts as wrong
	maxStale    = 3           // refusals of If-Match, each with a fresh URL
	youngURL    = time.Minute // a refused URL that is younger should have worked
	maxYoung    = 3           // such refusals before the waits between them grow
)

// Fetcher downloads into a directory, one archive at a time.
type Fetcher struct {
	FS      *durable.FS
	Path    func(checksum string) string // of a finished archive; its parts are at path + ".part"
	Client  *http.Client
	Log     zerolog.Logger
	Backoff time.Duration // the first wait after a failure; doubles up to 32 times that
	MinRate int64         // bytes a second below which a connection is given up; 0: never
}

// Fetch has the archive of ref at its path, durable and of the right size, when
// it returns nil; the whole checksum is the verifier's to compare. It tries
// until ctx ends. Errors that trying again does not cure are
// fleet.CodeDownload, CodeChecksum, CodeNoSpace or, when only fresh URLs were
// refused until ctx ended, CodeURLRefused.
func (f *Fetcher) Fetch(ctx context.Context, ref protocol.BundleRef, maxRate int64, renew func(context.Context) (protocol.BundleRef, error), progress func(int64)) error {
	final := f.Path(ref.Checksum)
	if info, err := os.Stat(final); err == nil && info.Size() == ref.Size {
		return nil
	}
	t, err := openTarget(f.FS, final+".part", ref)
	if err != nil {
		return fmt.Errorf("resume a download: %w", err)
	}
	defer func() { _ = t.close() }()
	s := source{fetcher: f, ref: ref, target: t, renew: renew, progress: progress, limit: newLimiter(maxRate)}
	if maxRate > 0 && maxRate < 2*f.MinRate {
		s.slow = true
	}
	if err := s.run(ctx); err != nil {
		return err
	}
	if err := t.finish(); err != nil {
		return full(err)
	}
	return f.FS.Rename("download-done", final+".part", final)
}

// source is where one download stands with its server.
type source struct {
	fetcher  *Fetcher
	ref      protocol.BundleRef
	target   *target
	renew    func(context.Context) (protocol.BundleRef, error)
	progress func(int64)
	limit    *limiter
	slow     bool // capped so low that a minimum rate makes no sense

	obtained time.Time // when the URL came; zero: with the command, age unknown
	young    int       // refusals of URLs younger than youngURL
	stale    int       // refusals of If-Match
	failures int       // since the last byte
}

// Verdicts of one request that are not the end.
var (
	errRefused = errors.New("the server refuses the URL")
	errStale   = errors.New("the object has changed")
)

func (s *source) run(ctx context.Context) error {
	for s.target.have < s.ref.Size {
		if s.ref.URL == "" {
			if err := s.fresh(ctx); err != nil {
				return err
			}
		}
		before := s.target.have
		err := s.get(ctx)
		s.progress(s.target.have)
		if s.target.have > before {
			s.failures = 0
		}
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return s.ended(ctx)
		}
		s.fetcher.Log.Debug().Err(err).Int64("bytes", s.target.have).Msg("download interrupted")
		switch {
		case errors.Is(err, errRefused), errors.Is(err, errStale):
			err = s.refused(ctx, err)
		case fleet.ErrorCode(err) == fleet.CodeInternal:
			s.failures++
			err = s.wait(ctx, s.failures)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refused gets another URL. When fresh ones are refused too, the waits grow.
func (s *source) refused(ctx context.Context, err error) error {
	if errors.Is(err, errStale) {
		if s.stale++; s.stale > maxStale {
			return fleet.Errorf(fleet.CodeDownload, "the object is not the one that was signed for (412)")
		}
	}
	if !s.obtained.IsZero() && time.Since(s.obtained) < youngURL {
		s.young++
	}
	if s.young >= maxYoung {
		if err := s.wait(ctx, s.young); err != nil {
			return err
		}
	}
	return s.fresh(ctx)
}

func (s *source) fresh(ctx context.Context) error {
	ref, err := s.renew(ctx)
	if ctx.Err() != nil {
		return s.ended(ctx)
	}
	if err != nil {
		return err
	}
	s.ref.URL, s.ref.ETag, s.obtained = ref.URL, ref.ETag, time.Now()
	if s.ref.URL == "" {
		return fleet.Errorf(fleet.CodeDownload, "the command came again without a URL")
	}
	return nil
}

// wait backs off with full jitter; n counts from 1.
func (s *source) wait(ctx context.Context, n int) error {
	d := s.fetcher.Backoff << min(n-1, 5)
	timer := time.NewTimer(rand.N(d) + d/8) //nolint:gosec // jitter
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return s.ended(ctx)
	}
}

// ended is the error of a download whose context ended.
func (s *source) ended(ctx context.Context) error {
	if s.young >= maxYoung {
		return fleet.Errorf(fleet.CodeURLRefused, "the server refused %d fresh URLs until the deadline", s.young)
	}
	return fmt.Errorf("download: %w", context.Cause(ctx))
}

// notThere reports a path that does not exist.
func notThere(err error) bool { return errors.Is(err, fs.ErrNotExist) }

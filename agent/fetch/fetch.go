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
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Bounds of one download.
const (
	maxBadParts = 5           // times in a row that a part did not match before the source counts as wrong
	maxDoubts   = 3           // answers about another object, or none, before they are believed
	maxStale    = 3           // refusals of If-Match, each with a fresh URL
	youngURL    = time.Minute // a refused URL that is younger should have worked
	maxYoung    = 3           // such refusals before the waits between them grow
)

// Fetcher downloads into a directory, one archive at a time.
type Fetcher struct {
	FS       *durable.FS
	Path     func(checksum string) string // of a finished archive; its parts are at path + ".part"
	Client   *http.Client                 // of NewClient
	Log      zerolog.Logger
	Backoff  time.Duration // the first wait after a failure; doubles up to 32 times that
	MaxBytes int64         // largest archive that is begun; 0: no bound
	MinRate  int64         // bytes a second, over Window, below which a connection is given up; 0: never
	Window   time.Duration // 0 is a minute
}

// Fetch has the archive of ref at its path, durable and of the right size, when
// it returns nil; the whole checksum is the verifier's to compare. It tries
// until ctx ends. Errors that trying again does not cure are, by fleet.Code:
//
//	too_large    above MaxBytes; nothing was downloaded
//	no_space     the disk cannot hold the release, before the download or in its middle
//	not_found    the server has no such object (404, 410), three times
//	checksum     the server has another object: its size differs, three times, or a part, five times
//	download     any other answer that is of no use
//	url_refused  only fresh URLs were refused (403) until ctx ended
func (f *Fetcher) Fetch(ctx context.Context, ref protocol.BundleRef, maxRate int64, renew func(context.Context) (protocol.BundleRef, error), progress func(int64)) (err error) {
	final := f.Path(ref.Checksum)
	if info, err := os.Stat(final); err == nil && info.Size() == ref.Size {
		return nil
	}
	if f.MaxBytes > 0 && ref.Size > f.MaxBytes {
		return fleet.Errorf(fleet.CodeTooLarge, "the archive has %d bytes, this device takes at most %d", ref.Size, f.MaxBytes)
	}
	t, err := openTarget(f.FS, final+".part", ref)
	if err != nil {
		return fmt.Errorf("resume a download: %w", err)
	}
	defer func() {
		_ = t.close()
		if fleet.ErrorCode(err) == fleet.CodeNoSpace { // the journal needs a place too
			err = errors.Join(err, f.FS.Remove("download-drop", final+".part"))
		}
	}()
	if err := room(filepath.Dir(final), ref, t.have); err != nil {
		return err
	}
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
	f.Log.Info().Int64("bytes", ref.Size).Int64("received", t.received).Int("requests", s.requests).Msg("archive downloaded")
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
	slow     bool  // capped so low that a minimum rate makes no sense
	skip     int64 // bytes of the answer at hand that the target has already

	obtained time.Time // when the URL came; zero: with the command, age unknown
	young    int       // refusals of URLs younger than youngURL
	stale    int       // refusals of If-Match
	doubts   int       // answers about another object since the last part that was right
	failures int       // since the last byte
	requests int
}

// Verdicts of one request that are not the end.
var (
	errRefused = errors.New("the server refuses the URL")
	errStale   = errors.New("the object has changed")
)

// doubt is an answer that would end the download if the object store had given
// it. A captive portal or a proxy between gives such answers too, so one alone
// is not believed.
type doubt struct{ error }

func (d doubt) Unwrap() error { return d.error }

func doubtful(code fleet.Code, format string, args ...any) error {
	return doubt{fleet.Errorf(code, format, args...)}
}

func (s *source) run(ctx context.Context) error {
	for s.target.have < s.ref.Size {
		if s.ref.URL == "" {
			if err := s.fresh(ctx); err != nil {
				return err
			}
		}
		before, sure := s.target.have, s.target.sure
		s.requests++
		err := s.get(ctx)
		s.progress(s.target.have)
		if s.target.have > before {
			s.failures = 0
		}
		if s.target.sure > sure {
			s.doubts = 0
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
		case errors.As(err, new(doubt)):
			if s.doubts++; s.doubts < maxDoubts {
				err = s.wait(ctx, s.doubts)
			}
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
		if err := s.target.restart(); err != nil {
			return err
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

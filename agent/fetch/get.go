package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/kernexhq/kernex/pkg/fleet"
)

const (
	maxChunk = 64 << 10
	minChunk = 512
	// stallWindow is how long a connection may stay below the minimum rate: with
	// round trips of seconds a few lost packets in a row take half a minute.
	stallWindow = time.Minute
)

// NewClient returns the client for downloads, which checks servers by conf. It
// speaks HTTP/1.1 only: a request that is given up then closes its connection,
// while HTTP/2 would send the next one over the same dead one.
func NewClient(conf *tls.Config) *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = conf
	t.TLSHandshakeTimeout = 30 * time.Second // four round trips on a bad link
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	return &http.Client{Transport: t}
}

// get makes one request from where the target stands and takes what comes.
func (s *source) get(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	u, err := url.Parse(s.ref.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return fleet.Errorf(fleet.CodeDownload, "the command's URL is not one of http or https")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.ref.URL, nil)
	if err != nil {
		return fleet.Errorf(fleet.CodeDownload, "the command's URL cannot be used")
	}
	req.Header.Set("Accept-Encoding", "identity")
	if s.target.have > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(s.target.have, 10)+"-")
	}
	if tag := s.ref.ETag; tag != "" {
		req.Header.Set("If-Match", `"`+strings.Trim(tag, `"`)+`"`)
	}
	stall := s.watch(cancel)
	defer stall.stop()
	res, err := s.fetcher.Client.Do(req)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err // without the URL, which is a credential
		}
		return fmt.Errorf("request: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	if err := s.answer(res); err != nil {
		return err
	}
	return s.take(ctx, res.Body, stall)
}

// answer decides by status whether the body can be taken.
func (s *source) answer(res *http.Response) error {
	switch c := res.StatusCode; {
	case c == http.StatusOK: // it ignored Range, if there was one
		if n := res.ContentLength; n >= 0 && n != s.ref.Size {
			return doubtful(fleet.CodeChecksum, "the object has %d bytes, the command says %d", n, s.ref.Size)
		}
		s.skip = s.target.have
		return nil
	case c == http.StatusPartialContent:
		var from, to, size int64
		if _, err := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); err != nil || from != s.target.have {
			return doubtful(fleet.CodeDownload, "the server sent the range %.80q, byte %d was asked for", res.Header.Get("Content-Range"), s.target.have)
		}
		if size != s.ref.Size {
			return doubtful(fleet.CodeChecksum, "the object has %d bytes, the command says %d", size, s.ref.Size)
		}
		s.skip = 0
		return nil
	case c == http.StatusForbidden || c == http.StatusUnauthorized:
		return errRefused
	case c == http.StatusPreconditionFailed:
		return errStale
	case c == http.StatusRequestedRangeNotSatisfiable:
		return doubtful(fleet.CodeChecksum, "the object ends before byte %d, the command says it has %d bytes", s.target.have, s.ref.Size)
	case c == http.StatusNotFound || c == http.StatusGone:
		return doubtful(fleet.CodeNotFound, "the server has no such archive (%s)", res.Status)
	case c == http.StatusTooManyRequests || c == http.StatusRequestTimeout || c >= 500:
		return fmt.Errorf("the server answered %s", res.Status)
	default:
		return doubtful(fleet.CodeDownload, "the server answered %s", res.Status)
	}
}

// take writes the body to the target, at most what is missing: one byte more is
// an error. What of the body the target has already is dropped first.
func (s *source) take(ctx context.Context, body io.Reader, stall *stall) error {
	buf := make([]byte, s.limit.chunk)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			stall.got(n)
			fresh := buf[min(int64(n), s.skip):n]
			s.skip -= int64(n - len(fresh))
			if s.target.have+int64(len(fresh)) > s.ref.Size {
				return doubtful(fleet.CodeChecksum, "the object has more than the %d bytes that the command says", s.ref.Size)
			}
			if werr := s.target.write(fresh); werr != nil {
				return full(werr)
			}
			s.progress(s.target.have)
			if lerr := s.limit.wait(ctx, n); lerr != nil {
				return lerr
			}
		}
		switch {
		case errors.Is(err, io.EOF) && s.target.have < s.ref.Size:
			return fmt.Errorf("the connection ended at %d of %d bytes", s.target.have, s.ref.Size)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the body: %w", err)
		}
	}
}

// stall cancels a request that stays below the minimum rate for a window. A
// missing answer counts as well.
type stall struct {
	timer  *time.Timer
	window time.Duration
	need   int64 // bytes a window
	seen   int64
}

func (s *source) watch(cancel func()) *stall {
	if s.fetcher.MinRate <= 0 || s.slow {
		return &stall{}
	}
	window := s.fetcher.Window
	if window == 0 {
		window = stallWindow
	}
	return &stall{timer: time.AfterFunc(window, cancel), window: window, need: max(s.fetcher.MinRate*window.Milliseconds()/1000, 1)}
}

func (w *stall) got(n int) {
	if w.timer == nil {
		return
	}
	if w.seen += int64(n); w.seen >= w.need {
		w.seen = 0
		w.timer.Reset(w.window)
	}
}

func (w *stall) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// limiter caps the bandwidth. Its zero rate does not; chunk is how much to read
// at once, a quarter of a second's worth, so that the bytes come evenly and a
// slow cap is not taken for a dead connection.
type limiter struct {
	rate  *rate.Limiter
	chunk int
}

func newLimiter(bytesPerSecond int64) *limiter {
	if bytesPerSecond <= 0 {
		return &limiter{chunk: maxChunk}
	}
	chunk := int(min(max(bytesPerSecond/4, minChunk), maxChunk))
	return &limiter{rate.NewLimiter(rate.Limit(bytesPerSecond), chunk), chunk}
}

func (l *limiter) wait(ctx context.Context, n int) error {
	if l.rate == nil {
		return nil
	}
	return l.rate.WaitN(ctx, n)
}

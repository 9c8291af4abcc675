package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	firstWait = 200 * time.Millisecond // doubling
	maxWait   = 10 * time.Second       // also the most that Retry-After may ask for
)

// retry says whether a call may be sent again, and after how long; after 0
// leaves that to the attempt's number.
type retry struct {
	no    bool
	after time.Duration
}

// wait sleeps before attempt try+1. It reports false when ctx ended meanwhile.
func (r retry) wait(ctx context.Context, try int) bool {
	d := r.after
	if d == 0 {
		d = backoff(try)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// backoff is half fixed, half random: many clients that lost one server do not
// return at once, and none hammers it.
func backoff(try int) time.Duration {
	d := min(firstWait<<min(try, 10), maxWait)
	return d/2 + rand.N(d/2+1)
}

// repeatable reports whether sending r twice does what sending it once does.
func (r request) repeatable() bool {
	switch r.method {
	case http.MethodGet, http.MethodPost:
		return true
	case http.MethodPut, http.MethodPatch:
		return r.ifMatch == ""
	}
	return false
}

// notSent reports whether err came before a connection stood.
func notSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// retryStatus judges an error answer: 429 and 503 promise that nothing was
// done, 502 and 504 come from a proxy that does not know.
func retryStatus(r request, resp *http.Response) retry {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		if !r.repeatable() {
			return retry{no: true}
		}
	default:
		return retry{no: true}
	}
	s, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || s <= 0 {
		return retry{}
	}
	return retry{after: min(time.Duration(s)*time.Second, maxWait)}
}

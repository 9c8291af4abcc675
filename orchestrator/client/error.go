package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// ErrUnreachable is in the chain of every error that says that no answer came,
// as opposed to one that the API gave.
var ErrUnreachable = errors.New("no answer")

// problem is the body of an error: RFC 9457 with the API's stable code.
type problem struct {
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
}

// problem reads an error answer: the code from its body, else from its status.
func (c *Client) problem(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		b = nil // the status alone is enough
	}
	var p problem
	if json.Unmarshal(b, &p) != nil || p.Title == "" && p.Detail == "" && p.Code == "" {
		return fleet.Errorf(codeOf(resp.StatusCode), "%s answered %s without the admin API's explanation: is this the address of Kernex?", c.url, resp.Status)
	}
	e := &fleet.Error{Code: fleet.Code(p.Code), Message: p.Detail}
	if e.Code == "" {
		e.Code = codeOf(resp.StatusCode)
	}
	if e.Message == "" {
		e.Message = p.Title
	}
	return e
}

func codeOf(status int) fleet.Code {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return fleet.CodeInvalid
	case http.StatusUnauthorized:
		return fleet.CodeUnauthorized
	case http.StatusForbidden:
		return fleet.CodeForbidden
	case http.StatusNotFound, http.StatusGone:
		return fleet.CodeNotFound
	case http.StatusConflict:
		return fleet.CodeConflict
	case http.StatusPreconditionFailed:
		return fleet.CodeStale
	case http.StatusRequestEntityTooLarge:
		return fleet.CodeTooLarge
	case http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType, http.StatusNotImplemented:
		return fleet.CodeUnsupported
	case http.StatusTooManyRequests:
		return fleet.CodeRateLimited
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return fleet.CodeUnavailable
	}
	return fleet.CodeInternal
}

// unreachable explains why no answer came. A context that ended stays
// recognisable by errors.Is.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) { // by the caller; a timeout is not
		return fmt.Errorf("call %s: %w", c.url, ctx.Err())
	}
	why := err.Error()
	var (
		ue *url.Error
		op *net.OpError
		ne net.Error
	)
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		why = "no answer in time"
	case errors.As(err, &op) && op.Op == "dial":
		why = op.Err.Error()
	case errors.As(err, &ue):
		why = ue.Err.Error()
	}
	why = strings.TrimPrefix(why, "connect: ")
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		why = "the connection ended before the answer"
	}
	return fleet.Wrap(fleet.CodeUnavailable, errors.Join(ErrUnreachable, err), fmt.Sprintf("cannot reach %s: %s", c.url, why))
}

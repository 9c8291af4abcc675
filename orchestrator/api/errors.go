package api

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// codeMethod is a path that exists with a method that it does not have.
const codeMethod fleet.Code = "method_not_allowed"

// statuses is the one table of codes and HTTP statuses.
var statuses = map[fleet.Code]int{
	fleet.CodeInvalid:      http.StatusBadRequest,
	fleet.CodeUnauthorized: http.StatusUnauthorized,
	fleet.CodeForbidden:    http.StatusForbidden,
	fleet.CodeNotFound:     http.StatusNotFound,
	codeMethod:             http.StatusMethodNotAllowed,
	fleet.CodeTimeout:      http.StatusRequestTimeout,
	fleet.CodeConflict:     http.StatusConflict,
	fleet.CodeIdempotency:  http.StatusConflict,
	fleet.CodeStale:        http.StatusPreconditionFailed,
	fleet.CodeTooLarge:     http.StatusRequestEntityTooLarge,
	fleet.CodeUnsupported:  http.StatusUnsupportedMediaType,
	fleet.CodeBadBundle:    http.StatusUnprocessableEntity,
	fleet.CodeChecksum:     http.StatusUnprocessableEntity,
	fleet.CodeBadSignature: http.StatusUnprocessableEntity,
	fleet.CodeWrongDevice:  http.StatusUnprocessableEntity,
	fleet.CodeRateLimited:  http.StatusTooManyRequests,
	fleet.CodeUnavailable:  http.StatusServiceUnavailable,
	fleet.CodeInternal:     http.StatusInternalServerError,
}

// Status returns the HTTP status of a code; one that the table does not have is
// our fault, 500.
func Status(c fleet.Code) int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// CodeOf returns the code that an answer without one stands for.
func CodeOf(status int) fleet.Code {
	switch status {
	case http.StatusConflict:
		return fleet.CodeConflict
	case http.StatusUnprocessableEntity:
		return fleet.CodeInvalid
	}
	for c, s := range statuses {
		if s == status {
			return c
		}
	}
	if status >= 400 && status < 500 {
		return fleet.CodeInvalid
	}
	return fleet.CodeInternal
}

// Problem is the body of every error (RFC 9457). Detail is for people and never
// holds internals; Code is for machines and stable.
type Problem struct {
	Type   string     `json:"type" doc:"Always about:blank: the code says which problem it is"`
	Title  string     `json:"title" doc:"The status in words"`
	Status int        `json:"status"`
	Detail string     `json:"detail" doc:"What is wrong, with the values that matter"`
	Code   fleet.Code `json:"code" doc:"Stable reason for machines"`
}

// Error returns what the client reads.
func (p *Problem) Error() string { return string(p.Code) + ": " + p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// problemOf turns any error into what the client may read of it.
func problemOf(err error) *Problem {
	var p *Problem
	var big *http.MaxBytesError
	var ne net.Error
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &big):
		err = fleet.Errorf(fleet.CodeTooLarge, "the body is larger than %d bytes", big.Limit)
	case fleet.ErrorCode(err) == fleet.CodeInternal && errors.As(err, &ne) && ne.Timeout():
		err = fleet.Errorf(fleet.CodeTimeout, "the request took too long")
	}
	code := fleet.ErrorCode(err)
	status := Status(code)
	if status == http.StatusInternalServerError {
		code = fleet.CodeInternal
	}
	detail := fleet.ErrorMessage(err)
	if code == fleet.CodeInternal {
		detail = "internal error; the server's log has it under this request's X-Request-Id"
	}
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, Code: code}
}

// maxShown bounds how many broken rules of a body one answer lists.
const maxShown = 5

// humaError is what huma finds wrong with a request before a handler sees it.
// Values stay out of it: one of them may be the whole body.
func humaError(status int, msg string, errs ...error) *Problem {
	code := CodeOf(status)
	var found []string
	for _, err := range errs {
		var d huma.ErrorDetailer
		switch {
		case err == nil:
		case errors.As(err, &d):
			e := d.ErrorDetail()
			found = append(found, strings.TrimSpace(e.Location+": "+e.Message))
		default:
			found = append(found, err.Error())
		}
	}
	if code == fleet.CodeInternal {
		return problemOf(fmt.Errorf("%s: %s", msg, strings.Join(found, "; ")))
	}
	if len(found) > maxShown {
		found = append(found[:maxShown], fmt.Sprintf("and %d more", len(found)-maxShown))
	}
	if len(found) > 0 {
		msg = strings.Join(found, "; ")
	}
	return problemOf(&fleet.Error{Code: code, Message: msg})
}

func init() {
	// huma has these as variables of its package; this program has one API.
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError { return humaError(status, msg, errs...) }
	huma.NewErrorWithContext = func(_ huma.Context, status int, msg string, errs ...error) huma.StatusError {
		return humaError(status, msg, errs...)
	}
}

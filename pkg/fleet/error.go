package fleet

import (
	"errors"
	"fmt"
)

// Code is the stable, machine-readable reason of an error. Codes are part of
// the API and of the device protocol: they are only ever added.
type Code string

// The codes that more than one part of Kernex uses. HTTP statuses for them are
// in the api package's one table.
const (
	CodeInternal     Code = "internal"      // our fault; the message never leaves the process
	CodeInvalid      Code = "invalid"       // the input breaks a rule; the message says which and with which value
	CodeUnauthorized Code = "unauthorized"  // no valid credential
	CodeForbidden    Code = "forbidden"     // a valid credential without the right
	CodeNotFound     Code = "not_found"     // no such thing
	CodeConflict     Code = "conflict"      // the state of the thing does not allow it
	CodeStale        Code = "stale"         // If-Match names another version
	CodeTooLarge     Code = "too_large"     // above a size limit
	CodeRateLimited  Code = "rate_limited"  // too many requests
	CodeUnavailable  Code = "unavailable"   // a part we need is away; try again
	CodeIdempotency  Code = "key_reused"    // the same Idempotency-Key with another body
	CodeUnsupported  Code = "unsupported"   // a content type, algorithm or feature we refuse
	CodeBadBundle    Code = "bad_bundle"    // an archive or manifest that breaks bundle rules
	CodeChecksum     Code = "checksum"      // bytes unlike their digest
	CodeBadSignature Code = "bad_signature" // a signature that does not verify
)

// Codes that a device reports in a result, or the orchestrator puts into an
// acknowledgement.
const (
	CodeUnknownCommand Code = "unknown_command" // no such command for this device
	CodeNoTarget       Code = "no_target"       // the device is no target of that deployment
	CodeLate           Code = "late"            // the target was already final; kept as late_result
	CodeStaleSeq       Code = "stale_seq"       // seq <= closed_through
	CodeExpired        Code = "expired"         // not_after has passed
	CodeHealth         Code = "health"          // the health check did not hold
	CodeScript         Code = "script"          // a script failed
	CodeTimeout        Code = "timeout"         // a step took longer than its limit
	CodeDownload       Code = "download"        // the bundle could not be fetched
	CodeURLRefused     Code = "url_refused"     // 403 on fresh URLs until the deadline
	CodeNoSpace        Code = "no_space"        // the disk cannot hold the bundle
	CodeWrongDevice    Code = "wrong_device"    // architecture, device type or agent version do not fit
	CodeInterrupted    Code = "interrupted"     // the agent died during a step whose outcome is unknown
	CodeInconsistent   Code = "inconsistent"    // the device could not return to a whole version
	CodeCancelled      Code = "cancelled"       // an operator cancelled it
	CodeSuperseded     Code = "superseded"      // a newer deployment took its place
)

// Error is the one error type of Kernex: a code for machines and a message for
// people. Message is safe to show to a client; Err, when set, is the cause and
// is logged only.
type Error struct {
	Code    Code
	Message string
	Err     error
}

// Error returns the code, the message and the cause, for logs.
func (e *Error) Error() string {
	s := string(e.Code) + ": " + e.Message
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an *Error with the given code. A %w in the format sets the
// cause; its text then stands in the message too, so wrap only errors that a
// client may read. Use Wrap to keep a cause private.
func Errorf(code Code, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Wrap gives err a code and a public message; err itself stays private.
func Wrap(code Code, err error, message string) error {
	return &Error{Code: code, Message: message, Err: err}
}

// ErrorCode returns the code of err: "" for nil, the code of the first *Error
// in its chain, else CodeInternal.
func ErrorCode(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Code
	}
	return CodeInternal
}

// ErrorMessage returns what a client may read of err: the message of the first
// *Error in its chain, else a fixed text without internals.
func ErrorMessage(err error) string {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e) && e.Code != CodeInternal:
		return e.Message
	}
	return "internal error"
}

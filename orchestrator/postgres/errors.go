package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"

	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// translate gives a driver error its code, by SQLSTATE and never by text. verb
// says what was tried. Errors that already have a code, and nil, pass through.
func translate(err error, verb string) error {
	var coded *fleet.Error
	var pe *pq.Error
	var ne net.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &coded), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, sql.ErrNoRows):
		return fleet.Wrap(fleet.CodeNotFound, fmt.Errorf("%s: %w", verb, err), "not found")
	case errors.As(err, &pe):
		return fmt.Errorf("%s: %w", verb, &fleet.Error{Code: codeOf(pe), Message: messageOf(pe), Err: err})
	case errors.As(err, &ne), errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), errors.Is(err, context.DeadlineExceeded):
		return fleet.Wrap(fleet.CodeUnavailable, fmt.Errorf("%s: %w", verb, err), "the database does not answer; try again")
	}
	return fmt.Errorf("%s: %w", verb, err)
}

func codeOf(pe *pq.Error) fleet.Code {
	switch {
	case pe.Code == "23505", pe.Code == "23503":
		return fleet.CodeConflict
	case pe.Code == "23514", pe.Code.Class() == "22":
		return fleet.CodeInvalid
	case pe.Code.Class() == "08", pe.Code.Class() == "57", pe.Code.Class() == "53":
		return fleet.CodeUnavailable
	}
	return fleet.CodeInternal
}

// messageOf says what a client may read; constraint and value stay in the log.
func messageOf(pe *pq.Error) string {
	switch codeOf(pe) {
	case fleet.CodeConflict:
		if pe.Code == "23503" {
			return "something else still refers to it, or it refers to something that does not exist"
		}
		return "it already exists"
	case fleet.CodeInvalid:
		return "a value is out of its bounds"
	case fleet.CodeUnavailable:
		return "the database does not answer; try again"
	}
	return "internal error"
}

// retryable reports whether Postgres asks to run the transaction again.
func retryable(err error) bool {
	var pe *pq.Error
	return errors.As(err, &pe) && (pe.Code == "40001" || pe.Code == "40P01")
}

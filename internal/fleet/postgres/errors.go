package postgres

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// Classes of SQLSTATE (PostgreSQL, appendix A).
const (
	classData       = "22" // a value that the server cannot take
	classConstraint = "23" // a value that breaks a rule of the table
	classLimit      = "54" // a row that is too big
	classRaised     = "P0" // an error of somebody's trigger
	classInternal   = "XX"
)

// refused reports whether the server has looked at the values and refuses them, so
// that it would the next time. All else is passing: a lost connection, a server that
// stops, recovers, is full or only lets read, a deadlock or a time-out, and also a
// password that is wrong or a table that is missing, which somebody can set right
// while tasks wait.
func refused(err error) bool {
	server, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (strings.HasPrefix(server.Code, classData) || strings.HasPrefix(server.Code, classConstraint) ||
		strings.HasPrefix(server.Code, classLimit))
}

// failed wraps an error of a call to the server; nil for nil. A text that may quote
// a document is left out of it.
func failed(doing string, err error) error {
	if err == nil {
		return nil
	}
	// A pooler has given the session, and with it what was prepared there, to somebody else:
	// invalid_sql_statement_name, duplicate_prepared_statement.
	if server, ok := errors.AsType[*pgconn.PgError](err); ok && (server.Code == "26000" || server.Code == "42P05") {
		err = fmt.Errorf("%w: %w", errSessions, err)
	}
	return &callError{doing: doing, err: err}
}

// callError is an error of a call to the server. It unwraps to that of the driver.
type callError struct {
	doing string
	err   error
}

func (e *callError) Unwrap() error { return e.err }

// Error says what was being done and why it failed.
func (e *callError) Error() string {
	text := e.err.Error()
	if server, ok := errors.AsType[*pgconn.PgError](e.err); ok && quotes(server) {
		text = describe(server)
	}
	return e.doing + ": " + text
}

// quotes reports whether the server's message may hold values of a row.
func quotes(err *pgconn.PgError) bool {
	for _, class := range []string{classData, classConstraint, classLimit, classRaised, classInternal} {
		if strings.HasPrefix(err.Code, class) {
			return true
		}
	}
	return false
}

// describe says what the server found wrong, without its own words.
func describe(err *pgconn.PgError) string {
	var b strings.Builder
	fmt.Fprintf(&b, "PostgreSQL refuses it with SQLSTATE %s", err.Code)
	for _, part := range []struct{ name, value string }{
		{"table", err.TableName},
		{"column", err.ColumnName},
		{"constraint", err.ConstraintName},
		{"type", err.DataTypeName},
	} {
		if part.value != "" {
			fmt.Fprintf(&b, ", %s %s", part.name, part.value)
		}
	}
	return b.String()
}

// deviceError returns the error of one device whose shadow was to be written: a
// [*fleet.DeviceError] if the server refuses its values.
func deviceError(err error) error {
	server, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || !refused(err) {
		return err
	}
	return &fleet.DeviceError{Reason: v1alpha1.ReasonInvalidShadow, Message: "the shadow cannot be stored: " + describe(server)}
}

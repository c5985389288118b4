package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"batchtask.dev/operator/internal/fleet"
)

// errAnswer : a server has answered what the statement cannot have as its answer.
var errAnswer = errors.New("the server answers what was not asked")

// What anybody may be told of a database that cannot be used. They say nothing of who is
// at an address, and whether anybody is; see [Reason].
const (
	reasonUnreachable = "the database cannot be reached"
	reasonSilent      = "the database does not answer in time"
	reasonLogin       = "the database refuses the login"
	reasonBusy        = "the database lets nobody in at the moment"
	reasonAnswer      = "the database answers wrongly"
	reasonConnections = "no connection to a database is free (--database-connections-total)"
)

// Reason returns what may be told of an error to people who may see a Product but not the
// Secret with the URL of its database: no user, database, host or address, and nothing that
// tells a closed port from an open one, or what listens there. The whole error is for the
// log of the operator.
func Reason(err error) string {
	if text, ok := errors.AsType[*URLError](err); ok {
		return text.Error()
	}
	if schema, ok := errors.AsType[*SchemaError](err); ok {
		return schema.Error()
	}
	for _, told := range []error{errNetwork, errSessions, errStandby, errEnvironment, errAuthorities} {
		if errors.Is(err, told) { // without what stands beside it
			return told.Error()
		}
	}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	server, answered := errors.AsType[*pgconn.PgError](err)
	switch {
	case errors.Is(err, errConnections):
		return reasonConnections
	case answered && (isClass(server, "28") || connecting && (isClass(server, "3D") || isClass(server, "42"))):
		return reasonLogin
	case answered && (isClass(server, "53") || isClass(server, "57P0")):
		return reasonBusy
	case answered && connecting:
		return reasonUnreachable
	case answered:
		return "the database refuses a statement (SQLSTATE " + sqlState(server) + ")"
	case connecting:
		// Whatever it was that was found there, or not.
		return reasonUnreachable
	case errors.Is(err, errSilent), errors.Is(err, context.DeadlineExceeded):
		return reasonSilent
	case lost(err):
		return reasonUnreachable
	default:
		return reasonAnswer
	}
}

// lost reports whether a connection that was there has ended.
func lost(err error) bool {
	if _, network := errors.AsType[net.Error](err); network {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || pgconn.SafeToRetry(err)
}

func isClass(err *pgconn.PgError, class string) bool { return strings.HasPrefix(err.Code, class) }

// sqlState returns the code of an error if it is one.
func sqlState(err *pgconn.PgError) string {
	if len(err.Code) != 5 || strings.Trim(err.Code, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return "unknown"
	}
	return err.Code
}

// Fault says what an error of a call means for the server; is is false for what is no fault
// of it: a device that does not exist, a caller that has gone.
func (s *Store) Fault(err error) (fault fleet.Fault, is bool) {
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	_, answered := errors.AsType[*pgconn.PgError](err)
	silent := errors.Is(err, errSilent)
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded) && !connecting && !silent:
		return fault, false
	case errors.Is(err, errConnections):
	case connecting || silent:
		fault.Away, fault.Answered = !answered, answered
	case answered || wrong(err):
		fault.Answered = true
	case lost(err):
	default:
		return fault, false
	}
	fault.Reason = Reason(err)
	return fault, true
}

// wrong reports whether an error is about what a server has answered.
func wrong(err error) bool {
	for _, is := range []error{errAnswer, errTooLarge, errProtocol, errNoRoom, errSessions} {
		if errors.Is(err, is) {
			return true
		}
	}
	if _, contradicts := errors.AsType[*contradictionError](err); contradicts {
		return true
	}
	_, ok := errors.AsType[pgx.ScanArgError](err)
	return ok
}

// Probe makes a connection of its own and ends it: it finds out whether anybody answers
// while calls wait.
func (s *Store) Probe(ctx context.Context) error {
	conn, err := pgconn.ConnectConfig(ctx, &s.pool.Config().ConnConfig.Config)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

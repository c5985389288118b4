package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// planner are the parameters of every session of the store that say how its statements are
// to be carried out, whatever the role or the database says of them.
//
// All its statements go through the primary key, and each has one good plan, for any
// number of devices and whatever the server believes that number to be. It goes
// through names in their order, and so locks rows in their order: two calls that
// write the same devices wait for each other and never both. Compiling such a plan
// takes longer than running it.
var planner = map[string]string{
	"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off",
	"enable_indexscan": "on", "enable_indexonlyscan": "on", "enable_nestloop": "on", "enable_sort": "on",
	"plan_cache_mode": "force_generic_plan", "jit": "off",
}

// meaning are those that say what its statements mean.
var meaning = map[string]string{
	"client_encoding": "UTF8", "standard_conforming_strings": "on", "default_transaction_isolation": "read committed",
}

// sessionToken is a parameter that means nothing to the server: what a session remembers.
const sessionToken = "batchtask.session" //nolint:gosec // the name of a parameter

// errSessions : see the text.
var errSessions = errors.New("a connection pooler before the database does not keep a session for each connection; " +
	"let it do so (PgBouncer: pool_mode=session), or name the database itself")

// errStandby : see the text.
var errStandby = errors.New("the server only lets read, and the URL asks for one that lets write (target_session_attrs)")

// setUp returns what makes a session of a new connection. The parameters are set by a
// statement, not by the startup message, of which poolers refuse most.
//
// A server tells a client that has logged in the number of its process. One that answers
// with the number of another has a pooler before it, which may hand the next statement to
// yet another. Such a connection is marked, and looked at each time that it is used.
func setUp(t target, parameters map[string]string) pgconn.AfterConnectFunc {
	all := map[string]string{}
	maps.Copy(all, parameters)
	if t.searchPath != "" {
		all["search_path"] = t.searchPath
	}
	names := slices.Sorted(maps.Keys(all))
	return func(ctx context.Context, conn *pgconn.PgConn) error {
		token := rand.Text()
		var sql strings.Builder
		sql.WriteString("SELECT pg_catalog.pg_backend_pid()::text, pg_catalog.pg_is_in_recovery()::text, pg_catalog.current_setting('transaction_read_only'), pg_catalog.set_config($1, $2, false)")
		args := [][]byte{[]byte(sessionToken), []byte(token)}
		for _, name := range names {
			args = append(args, []byte(name), []byte(all[name]))
			fmt.Fprintf(&sql, ", pg_catalog.set_config($%d, $%d, false)", len(args)-1, len(args))
		}
		row, err := oneRow(conn.ExecParams(ctx, sql.String(), args, nil, nil, nil), 4+len(names))
		if err != nil {
			return fmt.Errorf("setting up the session: %w", err)
		}
		switch {
		case t.sessionAttrs == "primary" && row[1] != "false", t.sessionAttrs == "read-write" && row[2] != "off":
			return errStandby
		case row[3] != token:
			return fmt.Errorf("setting up the session: %w: a parameter was not set", errAnswer)
		}
		if row[0] != strconv.FormatUint(uint64(conn.PID()), 10) {
			conn.CustomData()[sessionToken] = token
		}
		return nil
	}
}

// oneRow returns the one row of an answer, with so many columns.
func oneRow(answer *pgconn.ResultReader, columns int) ([]string, error) {
	var rows [][]string
	for answer.NextRow() && len(rows) < 2 {
		var row []string
		for _, value := range answer.Values() {
			row = append(row, string(value))
		}
		rows = append(rows, row)
	}
	if _, err := answer.Close(); err != nil {
		return nil, err
	}
	if len(rows) != 1 || len(rows[0]) != columns {
		return nil, fmt.Errorf("%w: not one row of %d columns", errAnswer, columns)
	}
	return rows[0], nil
}

// pooled reports whether a connection goes through a pooler.
func pooled(conn *pgconn.PgConn) bool {
	_, is := conn.CustomData()[sessionToken]
	return is
}

// remembers returns [errSessions] where a connection has another session than before.
// It asks only those that go through a pooler.
func remembers(ctx context.Context, conn *pgconn.PgConn) error {
	token, is := conn.CustomData()[sessionToken]
	if !is {
		return nil
	}
	row, err := oneRow(conn.ExecParams(ctx, "SELECT pg_catalog.current_setting($1, true)", [][]byte{[]byte(sessionToken)}, nil, nil, nil), 1)
	if err == nil && row[0] != token {
		err = errSessions
	}
	return err
}

// keepsSessions returns [errSessions] where a pooler before the server gives the session of
// one connection to another. A pooler that is little used gives it to whoever comes next,
// one that takes them in turn to who comes at the right moment; so there are several looks.
// What slips through is found when the connection is used.
func keepsSessions(ctx context.Context, config *pgx.ConnConfig, conn *pgx.Conn) error {
	if !pooled(conn.PgConn()) {
		return nil
	}
	other, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() { _ = other.Close(context.WithoutCancel(ctx)) }()
	for others := range 4 {
		for range others {
			if err := remembers(ctx, other.PgConn()); err != nil {
				return err
			}
		}
		if err := remembers(ctx, conn.PgConn()); err != nil {
			return err
		}
	}
	return nil
}

// Package postgres keeps devices in PostgreSQL: good for products of a million.
//
// Nothing is held in memory. Names are read in pages along the primary key, and the
// shadows of many devices are changed by one statement.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"batchtask.dev/operator/internal/fleet"
)

// Store is a [fleet.Store] in a PostgreSQL database. Names of namespaces are part of
// the key of a device, so one database serves many namespaces, and one cluster.
//
// A server that was lost makes for passing errors, until it is there again.
type Store struct {
	pool *pgxpool.Pool
	// patience bounds each wait for the server.
	patience    time.Duration
	connections *Connections
	// guard stands before each call; nil is none.
	guard fleet.Guard
	// shared says that the pool is that of another Store.
	shared bool
	// expected is what most devices had when an update read them last. The documents need
	// not be sent by the server where they are the same again.
	expected atomic.Pointer[likeness]
}

var _ fleet.Store = (*Store)(nil)

// Open connects to the database and brings its tables up to date. ctx bounds that
// alone. The error is a [*SchemaError] where the tables are not those that this
// program knows; other errors may be passing. [Reason] says which of it anybody may see.
func Open(ctx context.Context, o Options) (*Store, error) {
	config, t, err := o.config()
	if err != nil {
		return nil, err
	}
	if err := o.prepare(ctx, config.ConnConfig, t); err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	config.ConnConfig = with(config.ConnConfig, t, o.parameters())
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	o.Connections.add(pool)
	s := &Store{pool: pool, connections: o.Connections, patience: o.statementTimeout() + grace}
	s.expected.Store(&likeness{})
	return s, nil
}

// prepare looks at what is before the database, and at its tables.
func (o Options) prepare(ctx context.Context, config *pgx.ConnConfig, t target) error {
	config = config.Copy()
	config.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, conn net.Conn) (net.Conn, error) {
		return &limited{Conn: conn, bounded: true, left: maxPreparing}, nil
	}
	// Nothing is set in this session that would trouble others who get it from a pooler.
	plain := with(config, t, nil)
	conn, err := pgx.ConnectConfig(ctx, plain)
	if err != nil {
		return failed("connecting", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := keepsSessions(ctx, plain, conn); err != nil {
		return err
	}
	// A migration may take longer than a statement of the store.
	own := o.parameters()
	own["statement_timeout"] = "0"
	delete(own, "plan_cache_mode")
	return prepareSchema(ctx, conn, with(config, t, own), o.KeepSchema)
}

// Guarded returns the store with a guard before each call. It has the same connections, and
// its Close does nothing.
func (s *Store) Guarded(guard fleet.Guard) fleet.ResultsKeeper {
	guarded := &Store{pool: s.pool, patience: s.patience, guard: guard, shared: true}
	guarded.expected.Store(&likeness{})
	return guarded
}

// Close ends all connections, once the calls under way have ended.
func (s *Store) Close() {
	if !s.shared {
		s.pool.Close()
		s.connections.remove(s.pool)
	}
}

// Sync implements [fleet.Store]. The store keeps nothing that could be old, so there
// is nothing to wait for but an answer of the server.
func (s *Store) Sync(ctx context.Context, _ string) error {
	return s.call(ctx, "asking the database", func(ctx context.Context) error {
		return s.pool.Ping(ctx)
	})
}

// errSilent : the server has not answered in time.
var errSilent = errors.New("the database does not answer")

// call bounds a call to the server and wraps its error.
func (s *Store) call(ctx context.Context, doing string, do func(context.Context) error) (err error) {
	if s.guard == nil {
		return s.bounded(ctx, doing, do)
	}
	inside, leave, err := s.guard.Enter(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	err = errors.New("the call has panicked") // unless it returns
	defer func() { err = leave(err) }()
	err = s.bounded(inside, doing, do)
	return err
}

func (s *Store) bounded(ctx context.Context, doing string, do func(context.Context) error) error {
	bounded, cancel := context.WithTimeoutCause(ctx, s.patience, errSilent)
	defer cancel()
	err := do(bounded)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		// It says more than the error of the call that it has ended.
		if why, ok := errors.AsType[*fleet.UnavailableError](context.Cause(ctx)); ok {
			return fmt.Errorf("%s: %w", doing, why)
		}
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	case bounded.Err() != nil:
		return fmt.Errorf("%s: %w", doing, errSilent)
	default:
		return failed(doing, err)
	}
}

// query runs a statement and hands each row to row.
func (s *Store) query(ctx context.Context, doing string, row func(pgx.CollectableRow) error, sql string, args ...any) error {
	return s.call(ctx, doing, func(ctx context.Context) error {
		rows, err := s.pool.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		return each(rows, row)
	})
}

// each hands each of the rows to row, until that returns an error.
func each(rows pgx.Rows, row func(pgx.CollectableRow) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

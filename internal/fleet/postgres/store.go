// Package postgres keeps devices in PostgreSQL: good for products of a million.
//
// Nothing is held in memory. Names are read in pages along the primary key, and the
// shadows of many devices are changed by one statement.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
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
	patience time.Duration
	// expected is what most devices had when an update read them last. The documents need
	// not be sent by the server where they are the same again.
	expected atomic.Pointer[likeness]
}

var _ fleet.Store = (*Store)(nil)

// Open connects to the database and brings its tables up to date. ctx bounds that
// alone. The error is a [*SchemaError] where the tables are not those that this
// program knows; other errors may be passing.
func Open(ctx context.Context, o Options) (*Store, error) {
	config, err := o.config()
	if err != nil {
		return nil, err
	}
	if err := prepareSchema(ctx, config, o.KeepSchema); err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	s := &Store{pool: pool, patience: o.statementTimeout() + grace}
	s.expected.Store(&likeness{})
	return s, nil
}

// Close ends all connections, once the calls under way have ended.
func (s *Store) Close() { s.pool.Close() }

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
func (s *Store) call(ctx context.Context, doing string, do func(context.Context) error) error {
	bounded, cancel := context.WithTimeoutCause(ctx, s.patience, errSilent)
	defer cancel()
	err := do(bounded)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		// It says more than the error of the call that it has ended.
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

package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// againAttempts is how often a change is tried that the server undoes.
	againAttempts = 5
	// againPause is up to how long the second attempt waits; later ones wait longer.
	againPause = 20 * time.Millisecond
)

// undone reports whether the server has undone a change as a whole because of others that
// were made at the same time: a deadlock, which it ends by undoing one of both (40P01), or
// transactions that must look as if one came after the other (40001).
func undone(err error) bool {
	server, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (server.Code == "40001" || server.Code == "40P01")
}

// again is call for a change that can be made once more from its beginning. It is, where
// the server has undone it: that is nobody's fault, and who waits a moment gets through.
func (s *Store) again(ctx context.Context, doing string, do func(context.Context) error) error {
	return s.call(ctx, doing, func(ctx context.Context) (err error) {
		for attempt := range againAttempts {
			if err = do(ctx); !undone(err) {
				return err
			}
			select {
			case <-ctx.Done():
				return err
			case <-time.After(rand.N(time.Duration(attempt+1) * againPause)): //nolint:gosec // no secret
			}
		}
		return err
	})
}

// begin runs do in a transaction each of whose statements sees what others have written
// until then. All conditions of this package are made for that, and not for what the role
// or the database may have as its default.
func begin(ctx context.Context, pool *pgxpool.Pool, do func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, do)
}

package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/validation"
)

// A shadow is written on the condition that its row is still the one that was read.
// That is what xmin says, the transaction that wrote the row: it also differs where
// somebody changed the row past this program and left the version as it was, or
// deleted it and made it anew.
const (
	readSQL = `SELECT xmin, reported, desired, metadata, version, changed_ms, applied_tasks, acknowledged
		FROM batchtask_device WHERE namespace = $1 AND product_id = $2 AND device_name = $3`
	lockSQL  = readSQL + ` FOR NO KEY UPDATE`
	writeSQL = `UPDATE batchtask_device
		SET reported = $5, desired = $6, metadata = $7, version = $8, changed_ms = $9, applied_tasks = $10, acknowledged = $11
		WHERE namespace = $1 AND product_id = $2 AND device_name = $3 AND xmin = $4`
	writeCountedSQL = `WITH written AS (` + writeSQL + ` RETURNING $12::text[] AS tasks)` + countWritten
)

var (
	// errConflict : somebody else has written in between.
	errConflict = fmt.Errorf("%w: the row was changed meanwhile", fleet.ErrConflict)
	// errNotWritten : the rows are locked and are as they were read, and still the server
	// has not written all of them.
	errNotWritten = contradicts("it has not updated rows that nobody else can change")
)

// querier is a connection pool or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// ReadShadow implements [fleet.Store].
func (s *Store) ReadShadow(ctx context.Context, p fleet.Product, name string) (is fleet.Shadow, err error) {
	if !validation.DeviceName(name) {
		return is, fleet.ErrDeviceGone
	}
	err = s.call(ctx, "reading the shadow of device "+name, func(ctx context.Context) (err error) {
		_, is, err = readShadow(ctx, s.pool, readSQL, p, name)
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = fleet.ErrDeviceGone
	}
	return is, err
}

// ChangeShadow implements [fleet.Store]. If somebody else has written between the
// read and the write, it is done once more with the row locked, so change is called
// twice for each attempt; see Store.again.
func (s *Store) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	if !validation.DeviceName(name) {
		return fleet.ErrDeviceGone
	}
	var own error // of change
	noted := func(was fleet.Shadow) (is fleet.Shadow, err error) {
		is, own = change(was)
		return is, own
	}
	doing := "changing the shadow of device " + name
	err := s.again(ctx, doing, func(ctx context.Context) error {
		err := changeShadow(ctx, s.pool, readSQL, p, name, noted)
		if !errors.Is(err, errConflict) {
			return err
		}
		return begin(ctx, s.pool, func(tx pgx.Tx) error {
			err := changeShadow(ctx, tx, lockSQL, p, name, noted)
			if errors.Is(err, errConflict) {
				err = errNotWritten
			}
			return err
		})
	})
	switch {
	case own != nil:
		return own
	case errors.Is(err, pgx.ErrNoRows):
		return fleet.ErrDeviceGone
	default:
		return deviceError(err)
	}
}

func changeShadow(ctx context.Context, db querier, sql string, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	row, was, err := readShadow(ctx, db, sql, p, name)
	if err != nil {
		return err
	}
	is, err := change(was)
	if err != nil || is.Equal(was) {
		return err
	}
	tasks := is.AppliedTasks
	if tasks == nil {
		tasks = []string{} // a nil slice would be NULL
	}
	args := []any{p.Namespace, p.ProductID, name, row, is.Reported, is.Desired, is.Metadata, is.Version, is.Timestamp, tasks, is.Acknowledged}
	uids, sql := acknowledges(was, is), writeSQL
	if len(uids) > 0 {
		sql, args = writeCountedSQL, append(args, uids)
	}
	written, err := write(ctx, db, len(uids) > 0, sql, args...)
	if err == nil {
		err = number("the number of updated devices", written, 1)
	}
	if err == nil && written == 0 {
		err = errConflict
	}
	return err
}

// readShadow returns a shadow and what identifies the row as it is.
func readShadow(ctx context.Context, db querier, sql string, p fleet.Product, name string) (row uint32, is fleet.Shadow, err error) {
	err = db.QueryRow(ctx, sql, p.Namespace, p.ProductID, name).
		Scan(&row, &is.Reported, &is.Desired, &is.Metadata, &is.Version, &is.Timestamp, &is.AppliedTasks, &is.Acknowledged)
	return row, is, err
}

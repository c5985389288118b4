package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/validation"
)

// Results is a [fleet.Results]. It is safe for concurrent use. Errors are passing
// unless they say otherwise.
type Results struct{ store *Store }

var (
	_ fleet.ResultsKeeper = (*Store)(nil)
	_ fleet.Results       = (*Results)(nil)
)

// ResultsOf implements [fleet.ResultsKeeper]: they are kept beside the devices.
func (s *Store) ResultsOf(context.Context, fleet.Product) (fleet.Results, error) {
	return s.Results(), nil
}

// Results returns the results of all tasks.
func (s *Store) Results() *Results { return &Results{s} }

// errNotInRange is not passing: somebody has a fault.
var errNotInRange = errors.New("a result is not within the range that is recorded, or a device has two")

const (
	// The row of the task is the lock of all who write its results, and says whose they are.
	resultOwnerSQL = `SELECT epoch FROM batchtask_result_task WHERE task_uid = $1 FOR UPDATE`
	// What overlaps is taken out, and what of it stays is put back.
	resultCutSQL = `DELETE FROM batchtask_result_range WHERE task_uid = $1 AND upto_name > $2 AND after_name < $3
		RETURNING after_name, upto_name, succeeded, at_ms`
	resultCutFailuresSQL = `DELETE FROM batchtask_result_failure WHERE task_uid = $1 AND device_name > $2 AND device_name <= $3`
	resultRangeSQL       = `INSERT INTO batchtask_result_range (task_uid, after_name, upto_name, succeeded, at_ms) VALUES ($1, $2, $3, $4, $5)`
	resultFailuresSQL    = `INSERT INTO batchtask_result_failure (task_uid, device_name, reason, message, at_ms)
		SELECT $1, name, reason, message, $2 FROM unnest($3::text[], $4::text[], $5::text[]) AS f (name, reason, message)`
	// Mostly a range comes after all others of its task, so that nothing needs to be cut.
	// Whether it does is looked at by a statement after the one that takes the lock: what
	// a statement sees is as it was when it began.
	resultAppendSQL = `WITH appended AS (
			INSERT INTO batchtask_result_range (task_uid, after_name, upto_name, succeeded, at_ms)
			SELECT $1, $2, $3, $4, $5 WHERE EXISTS (SELECT FROM batchtask_result_task WHERE task_uid = $1 AND epoch = $9)
				AND NOT EXISTS (SELECT FROM batchtask_result_range WHERE task_uid = $1 AND upto_name > $2)
			RETURNING at_ms),
		failures AS (
			INSERT INTO batchtask_result_failure (task_uid, device_name, reason, message, at_ms)
			SELECT $1, name, reason, message, at_ms
				FROM unnest($6::text[], $7::text[], $8::text[]) AS f (name, reason, message), appended)
		SELECT count(*) FROM appended`
)

// Record implements [fleet.Results]. It costs one round trip where the range comes after
// all that were recorded of the task, and five else.
func (r *Results) Record(ctx context.Context, taskUID string, _ fleet.Product, results fleet.ResultRange) error {
	upto := results.Upto
	if upto == "" {
		upto = aboveNames
	}
	own := piece{after: results.After, upto: upto, succeeded: slices.Clone(results.Succeeded), at: results.At.UnixMilli()}
	slices.Sort(own.succeeded)
	if err := check(own, results.Failed); err != nil {
		return fmt.Errorf("recording results of task %s: %w", taskUID, err)
	}
	doing := "recording results of task " + taskUID
	names, reasons, messages := columns(results.Failed)
	if appended, err := r.append(ctx, doing, taskUID, results.Epoch, own, names, reasons, messages); appended || err != nil {
		return err
	}
	return r.change(ctx, doing, func(ctx context.Context, tx pgx.Tx) error {
		kept, err := cut(ctx, tx, taskUID, results.Epoch, own.after, own.upto)
		if err != nil {
			return err
		}
		batch := &pgx.Batch{}
		for _, piece := range append(kept, own) {
			piece.insert(batch, taskUID)
		}
		if len(names) > 0 {
			batch.Queue(resultFailuresSQL, taskUID, own.at, names, reasons, messages)
		}
		return tx.SendBatch(ctx, batch).Close()
	})
}

// append records a range if it comes after all others of a task.
func (r *Results) append(ctx context.Context, doing, taskUID, epoch string, own piece, names, reasons, messages []string) (appended bool, err error) {
	var n int
	err = r.store.again(ctx, doing, func(ctx context.Context) error {
		var owner owner
		batch := &pgx.Batch{} // is a transaction
		owner.ask(batch, taskUID)
		batch.Queue(resultAppendSQL, taskUID, own.after, own.upto, own.names(), own.at, names, reasons, messages, epoch).
			QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
		if err := r.store.pool.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
		return owner.mustBe(epoch)
	})
	return n == 1, err
}

// owner is the epoch of the run that has the results of a task; nil where nobody has.
type owner []string

// ask takes the lock of the task's row, until the end of the transaction.
func (o *owner) ask(batch *pgx.Batch, taskUID string) {
	batch.Queue(resultOwnerSQL, taskUID).Query(func(rows pgx.Rows) (err error) {
		*o, err = some(rows, 1, pgx.RowTo[string])
		return err
	})
}

func (o *owner) mustBe(epoch string) error {
	if !slices.Equal(*o, owner{epoch}) {
		return fleet.ErrForeignEpoch
	}
	return nil
}

func (r *Results) change(ctx context.Context, doing string, do func(context.Context, pgx.Tx) error) error {
	return r.store.again(ctx, doing, func(ctx context.Context) error {
		return begin(ctx, r.store.pool, func(tx pgx.Tx) error { return do(ctx, tx) })
	})
}

// mostLeft bounds the pieces that cut keeps. There are two, unless ranges overlap.
const mostLeft = 16

// cut removes all results of a range, and keeps others from changing those of the task.
// It returns the pieces outside of the range of those that overlapped.
func cut(ctx context.Context, tx pgx.Tx, taskUID, epoch, after, upto string) (kept []piece, err error) {
	var owner owner
	batch := &pgx.Batch{}
	owner.ask(batch, taskUID)
	batch.Queue(resultCutSQL, taskUID, after, upto).Query(func(rows pgx.Rows) error {
		return each(rows, func(row pgx.CollectableRow) error {
			var old piece
			if err := row.Scan(&old.after, &old.upto, &old.succeeded, &old.at); err != nil {
				return err
			}
			if kept = append(kept, old.without(after, upto)...); len(kept) > mostLeft {
				return contradicts("it returned more than %d ranges of task %s that overlap", mostLeft, taskUID)
			}
			return nil
		})
	})
	batch.Queue(resultCutFailuresSQL, taskUID, after, upto)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return nil, err
	}
	return kept, owner.mustBe(epoch) // or all of it is undone
}

// piece is a range as it is stored, with its names in order.
type piece struct {
	after, upto string
	succeeded   []string
	at          int64 // Unix milliseconds
}

// without returns what is left of the range when another is cut out of it: up to two.
func (p piece) without(after, upto string) (left []piece) {
	if p.after < after {
		left = append(left, piece{p.after, after, p.succeeded[:position(p.succeeded, after)], p.at})
	}
	if p.upto > upto {
		left = append(left, piece{upto, p.upto, p.succeeded[position(p.succeeded, upto):], p.at})
	}
	return left
}

// position returns how many of the names are not greater than bound.
func position(names []string, bound string) int {
	i, found := slices.BinarySearch(names, bound)
	if found {
		i++
	}
	return i
}

func (p piece) insert(batch *pgx.Batch, taskUID string) {
	batch.Queue(resultRangeSQL, taskUID, p.after, p.upto, p.names(), p.at)
}

// names returns the names that succeeded, as they are stored.
func (p piece) names() []string {
	if p.succeeded == nil {
		return []string{} // a nil slice would be NULL
	}
	return p.succeeded
}

// check returns an error unless each name is within the range, and there once.
func check(p piece, failed []fleet.Failure) error {
	names := slices.Clone(p.succeeded)
	for _, f := range failed {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	for i, name := range names {
		if !validation.DeviceName(name) || name <= p.after || name > p.upto || i > 0 && name == names[i-1] {
			return fmt.Errorf("%w: device %q after %q up to %q", errNotInRange, name, p.after, p.upto)
		}
	}
	if p.after >= p.upto {
		return fmt.Errorf("%w: after %q up to %q is no range", errNotInRange, p.after, p.upto)
	}
	return nil
}

func columns(failed []fleet.Failure) (names, reasons, messages []string) {
	for _, f := range failed {
		names, reasons, messages = append(names, f.Name), append(reasons, storable(f.Reason)), append(messages, storable(f.Message))
	}
	return names, reasons, messages
}

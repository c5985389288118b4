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

const (
	resultEpochSQL = `SELECT epoch FROM batchtask_result_task WHERE task_uid = $1`
	// Taken is only what was read before: whoever took it meanwhile keeps it.
	resultTakeSQL = `INSERT INTO batchtask_result_task (task_uid, namespace, product_id, task_name, epoch) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (task_uid) DO UPDATE SET namespace = EXCLUDED.namespace, task_name = EXCLUDED.task_name, epoch = EXCLUDED.epoch
		WHERE batchtask_result_task.epoch = $6`
	// The ranges behind a name, up to the first that does not begin where the one before it
	// ends. The name may lie within the first of them.
	totalsSQL = `WITH behind AS (
			SELECT after_name, upto_name, coalesce(lag(upto_name) OVER (ORDER BY upto_name), $2) AS reached,
				CASE WHEN after_name >= $2 THEN cardinality(succeeded)
					ELSE (SELECT count(*) FROM unnest(succeeded) AS name WHERE name COLLATE "C" > $2) END AS n
			FROM batchtask_result_range WHERE task_uid = $1 AND upto_name > $2),
		gap AS (SELECT min(upto_name) AS at FROM behind WHERE after_name > reached COLLATE "C")
		SELECT coalesce(max(upto_name), $2), coalesce(sum(n), 0)::bigint FROM behind, gap WHERE gap.at IS NULL OR upto_name < gap.at`
	totalFailuresSQL = `SELECT count(*) FROM batchtask_result_failure WHERE task_uid = $1 AND device_name > $2 AND device_name <= $3`
	firstFailuresSQL = `SELECT device_name, reason, message FROM batchtask_result_failure
		WHERE task_uid = $1 AND device_name > $2 AND device_name <= $3 ORDER BY device_name LIMIT $4`
)

// errDoubt is passing: the run asks again.
var errDoubt = errors.New("this process cannot be sure at the moment that it is the leader")

// Take implements [fleet.Results]. Upto is greater than all names where a range was
// recorded to the end.
//
// Whose the results are is read before the run says whether it is sure. If it is, no other
// leader had begun when that was read, and whoever becomes leader later changes the epoch:
// so a process that stands still before it writes its own finds another there, and nothing
// is changed.
func (r *Results) Take(ctx context.Context, run fleet.ResultsRun, p fleet.Product, after string, failures int) (totals fleet.ResultTotals, err error) {
	doing := "taking over the results of task " + run.TaskUID
	before := ""
	if err := r.store.query(ctx, doing, func(row pgx.CollectableRow) error { return row.Scan(&before) }, resultEpochSQL, run.TaskUID); err != nil {
		return totals, err
	}
	if run.Sure != nil && !run.Sure() {
		return totals, failed(doing, errDoubt)
	}
	err = r.change(ctx, doing, func(ctx context.Context, tx pgx.Tx) error {
		totals = fleet.ResultTotals{}
		taken := false
		batch := &pgx.Batch{}
		batch.Queue(resultTakeSQL, run.TaskUID, p.Namespace, p.ProductID, run.TaskName, run.Epoch, before).
			Exec(func(tag pgconn.CommandTag) error {
				taken = tag.RowsAffected() == 1
				return nil
			})
		batch.Queue(totalsSQL, run.TaskUID, after).QueryRow(func(row pgx.Row) error { return row.Scan(&totals.Upto, &totals.Succeeded) })
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
		if !taken {
			return fleet.ErrForeignEpoch
		}
		batch = &pgx.Batch{}
		batch.Queue(totalFailuresSQL, run.TaskUID, after, totals.Upto).QueryRow(func(row pgx.Row) error { return row.Scan(&totals.Failed) })
		batch.Queue(firstFailuresSQL, run.TaskUID, after, totals.Upto, failures).Query(func(rows pgx.Rows) (err error) {
			totals.FirstFailed, err = some(rows, failures, func(row pgx.CollectableRow) (fleet.Failure, error) {
				f, err := pgx.RowToStructByPos[fleet.Failure](row)
				return f, errors.Join(err, texts(f.Name, f.Reason, f.Message))
			})
			return err
		})
		return tx.SendBatch(ctx, batch).Close()
	})
	if err == nil && !possible(totals, after) {
		err = failed(doing, fmt.Errorf("%w: behind %q up to %q, %d succeeded, %d failed", errImpossible, after, totals.Upto, totals.Succeeded, totals.Failed))
	}
	return totals, err
}

// errImpossible is passing: somebody may set the tables right.
var errImpossible = errors.New("the database sums up results in a way that cannot be")

func possible(totals fleet.ResultTotals, after string) bool {
	return totals.Succeeded >= 0 && totals.Failed >= 0 &&
		(totals.Upto == after || totals.Upto > after && (totals.Upto == aboveNames || validation.DeviceName(totals.Upto)))
}

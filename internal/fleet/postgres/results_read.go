package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"batchtask.dev/operator/internal/fleet"
)

const (
	// rangePage is how many ranges are read at once, failurePage how many failures.
	rangePage, failurePage = 32, 4096
	// deletePage is how many rows are deleted at once.
	deletePage = 10000
)

// Result is what became of one device of a task.
type Result struct {
	// Name is the name of the device.
	Name string
	// Failed says which of both it is. Reason and Message are those of [fleet.Failure], and
	// empty for a device that succeeded.
	Failed          bool
	Reason, Message string
	// At is the time of the result, to the millisecond.
	At time.Time
}

const (
	resultFailedSQL = `SELECT device_name, true, reason, message, at_ms FROM batchtask_result_failure
		WHERE task_uid = $1 AND device_name > $2 ORDER BY device_name LIMIT $3`
	// The failures of a range are read beside its names, so that nothing is sorted but
	// one range. The last columns say how far the page has come.
	resultListSQL = `WITH page AS MATERIALIZED (
			SELECT after_name, upto_name, succeeded, at_ms FROM batchtask_result_range
			WHERE task_uid = $1 AND upto_name > $2 ORDER BY upto_name LIMIT $3)
		SELECT r.device_name, r.failed, r.reason, r.message, r.at_ms, page.upto_name
		FROM page LEFT JOIN LATERAL (
			SELECT name AS device_name, false AS failed, '' AS reason, '' AS message, page.at_ms
				FROM unnest(page.succeeded) AS name
			UNION ALL
			SELECT f.device_name, true, f.reason, f.message, f.at_ms FROM batchtask_result_failure f
				WHERE f.task_uid = $1 AND f.device_name > page.after_name AND f.device_name <= page.upto_name) AS r ON true
		ORDER BY page.upto_name, r.device_name COLLATE "C"`
)

// List calls fn with the results of a task, or those that failed, in the order of the
// names, until fn returns an error, which List returns as it is. It holds one page of
// them. Results that are recorded meanwhile may be among them or not.
func (r *Results) List(ctx context.Context, taskUID string, failedOnly bool, fn func(Result) error) error {
	after := ""
	for {
		page, reached, err := r.page(ctx, taskUID, failedOnly, after)
		if err != nil {
			return err
		}
		for _, result := range page {
			// A range may have been recorded anew, with other bounds, since the last page.
			if result.Name <= after {
				continue
			}
			if err := fn(result); err != nil {
				return err
			}
		}
		if reached == "" {
			return nil
		}
		after = reached
	}
}

// page returns the next results, and up to which name there are no others; "" at the
// end of all.
func (r *Results) page(ctx context.Context, taskUID string, failedOnly bool, after string) (page []Result, reached string, err error) {
	doing := "reading the results of task " + taskUID
	if failedOnly {
		err = r.store.query(ctx, doing, func(row pgx.CollectableRow) error {
			var result Result
			var at int64
			err := row.Scan(&result.Name, &result.Failed, &result.Reason, &result.Message, &at)
			result.At = time.UnixMilli(at)
			page = append(page, result)
			return err
		}, resultFailedSQL, taskUID, after, failurePage)
		if len(page) == failurePage {
			reached = page[len(page)-1].Name
		}
		return page, reached, err
	}
	err = r.store.query(ctx, doing, func(row pgx.CollectableRow) error {
		var name, reason, message pgtype.Text
		var failed pgtype.Bool
		var at pgtype.Int8
		if err := row.Scan(&name, &failed, &reason, &message, &at, &reached); err != nil {
			return err
		}
		if name.Valid { // a range without results has one row that says so
			page = append(page, Result{name.String, failed.Bool, reason.String, message.String, time.UnixMilli(at.Int64)})
		}
		return nil
	}, resultListSQL, taskUID, after, rangePage)
	return page, reached, err
}

// totalsSQL sums up ranges without a second pass over their names.
const (
	totalsSQL        = `SELECT coalesce(max(upto_name), ''), coalesce(sum(cardinality(succeeded)), 0) FROM batchtask_result_range WHERE task_uid = $1`
	totalFailuresSQL = `SELECT count(*) FROM batchtask_result_failure WHERE task_uid = $1`
	firstFailuresSQL = `SELECT device_name, reason, message FROM batchtask_result_failure WHERE task_uid = $1 ORDER BY device_name LIMIT $2`
)

// Totals implements [fleet.Results]. Upto is greater than all names where a range was
// recorded to the end.
func (r *Results) Totals(ctx context.Context, taskUID string, failures int) (totals fleet.ResultTotals, err error) {
	err = r.store.call(ctx, "summing up results of task "+taskUID, func(ctx context.Context) error {
		totals = fleet.ResultTotals{}
		return pgx.BeginTxFunc(ctx, r.store.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			batch := &pgx.Batch{}
			batch.Queue(totalsSQL, taskUID).QueryRow(func(row pgx.Row) error { return row.Scan(&totals.Upto, &totals.Succeeded) })
			batch.Queue(totalFailuresSQL, taskUID).QueryRow(func(row pgx.Row) error { return row.Scan(&totals.Failed) })
			batch.Queue(firstFailuresSQL, taskUID, failures).Query(func(rows pgx.Rows) (err error) {
				totals.FirstFailed, err = pgx.CollectRows(rows, pgx.RowToStructByPos[fleet.Failure])
				return err
			})
			return tx.SendBatch(ctx, batch).Close()
		})
	})
	return totals, err
}

// Tasks returns the UIDs of all tasks that have results, or that devices have
// acknowledged, so that those of tasks that are gone can be deleted.
func (r *Results) Tasks(ctx context.Context) (uids []string, err error) {
	err = r.store.query(ctx, "listing the tasks that have results or were acknowledged", func(row pgx.CollectableRow) error {
		var uid string
		err := row.Scan(&uid)
		uids = append(uids, uid)
		return err
	}, `SELECT task_uid FROM batchtask_result_task UNION SELECT task_uid FROM batchtask_acknowledged ORDER BY task_uid`)
	return uids, err
}

// Delete removes all results of a task, and how many devices have acknowledged it. It
// takes large ones in steps: after an error some may be left, and the task is still
// among Tasks. So it is again when a device acknowledges the task later.
func (r *Results) Delete(ctx context.Context, taskUID string) error {
	doing := "deleting the results of task " + taskUID
	tables := []string{"batchtask_result_range", "batchtask_result_failure"}
	for _, table := range tables {
		for deleted := int64(deletePage); deleted == deletePage; {
			err := r.store.call(ctx, doing, func(ctx context.Context) error {
				tag, err := r.store.pool.Exec(ctx, `DELETE FROM `+table+` WHERE task_uid = $1 AND ctid = ANY (ARRAY(
					SELECT ctid FROM `+table+` WHERE task_uid = $1 LIMIT $2))`, taskUID, deletePage)
				deleted = tag.RowsAffected()
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	// What was recorded meanwhile goes together with the row of the task, since nobody
	// would find it without that.
	return r.change(ctx, doing, func(ctx context.Context, tx pgx.Tx) error {
		batch := &pgx.Batch{}
		batch.Queue(resultOwnedSQL, taskUID)
		for _, table := range append(tables, "batchtask_acknowledged", "batchtask_result_task") {
			batch.Queue(`DELETE FROM `+table+` WHERE task_uid = $1`, taskUID)
		}
		return tx.SendBatch(ctx, batch).Close()
	})
}

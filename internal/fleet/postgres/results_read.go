package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

const (
	// rangePage is how many ranges are read at once, failurePage how many failures.
	rangePage, failurePage = 32, 4096
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

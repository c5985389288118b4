package postgres

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet"
)

// What devices acknowledge is counted by the statement that writes their shadows, so
// it is counted once, also where nobody learns that the statement was carried out. A
// statement counts all its devices together.
//
// The rows of the devices are locked first, in the order of their names, and then those
// that are counted in, in the order of the tasks. Whoever holds one of these locks no
// device any more. So nobody waits for each other.
const (
	// counted follows a statement that it calls written, with an array of the tasks that
	// each device has acknowledged. $1 and $2 are the product.
	counted = `, counted AS (
		INSERT INTO batchtask_acknowledged AS a (task_uid, namespace, product_id, shard, devices)
		SELECT task, $1, $2, pg_backend_pid() % 16, count(*) FROM written, unnest(written.tasks) AS task GROUP BY task ORDER BY task
		ON CONFLICT (task_uid, namespace, product_id, shard) DO UPDATE SET devices = a.devices + EXCLUDED.devices)`
	countWritten = counted + ` SELECT count(*) FROM written`

	acknowledgedSQL = `SELECT task_uid, sum(devices)::bigint FROM batchtask_acknowledged
		WHERE task_uid = ANY ($3::text[]) AND namespace = $1 AND product_id = $2 GROUP BY task_uid`
)

// Acknowledged implements [fleet.Store]. The counts do not fall: a device that was
// deleted since, or whose shadow has forgotten the task, had acknowledged it. They go
// with [Results.Delete].
func (s *Store) Acknowledged(ctx context.Context, p fleet.Product, taskUIDs []string) (map[string]fleet.Acknowledged, error) {
	counts := map[string]fleet.Acknowledged{}
	err := s.query(ctx, "reading how many devices have acknowledged tasks", func(row pgx.CollectableRow) error {
		var uid string
		var n int64
		if err := row.Scan(&uid, &n); err != nil {
			return err
		}
		if _, twice := counts[uid]; twice || !slices.Contains(taskUIDs, uid) {
			return contradicts("it counted task %s, which nobody asked for, or counted it twice", shown(uid))
		}
		counts[uid] = fleet.Acknowledged{Devices: n, Total: true}
		return number("the number of devices that have acknowledged a task", n, mostDevices)
	}, acknowledgedSQL, p.Namespace, p.ProductID, taskUIDs)
	if err != nil {
		return nil, err
	}
	for _, uid := range taskUIDs {
		if _, counted := counts[uid]; !counted {
			counts[uid] = fleet.Acknowledged{Total: true} // by nobody, and that is a total too
		}
	}
	return counts, nil
}

// write runs a statement that writes devices, and returns how many it has written. One
// that counts what they have acknowledged says that in its one row.
func write(ctx context.Context, db querier, counts bool, sql string, args ...any) (written int64, err error) {
	if counts {
		err = db.QueryRow(ctx, sql, args...).Scan(&written)
		return written, err
	}
	tag, err := db.Exec(ctx, sql, args...)
	return tag.RowsAffected(), err
}

// acknowledges returns the tasks that the device has acknowledged in a shadow, and not
// in the one before.
func acknowledges(was, is fleet.Shadow) []string {
	before := acknowledgedIn(was)
	return slices.DeleteFunc(slices.Clone(acknowledgedIn(is)), func(uid string) bool { return slices.Contains(before, uid) })
}

func acknowledgedIn(s fleet.Shadow) []string {
	return s.AppliedTasks[:min(max(0, s.Acknowledged), len(s.AppliedTasks))]
}

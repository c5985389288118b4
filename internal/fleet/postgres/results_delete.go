package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"batchtask.dev/operator/internal/fleet"
)

const (
	// tasksPage is how many tasks are listed at once, deletePage how many rows deleted.
	tasksPage, deletePage = 1000, 10000
	// condemned is the epoch of results that are being deleted. No run has it: it holds
	// no '#'.
	condemned = "deleted"
)

// Tasks returns the tasks that have results, or that devices have acknowledged, so that
// those of tasks that are gone can be deleted.
func (r *Results) Tasks(ctx context.Context, afterUID string) (kept []fleet.KeptResults, err error) {
	err = r.store.query(ctx, "listing the tasks that have results or were acknowledged", func(row pgx.CollectableRow) error {
		task, err := pgx.RowToStructByPos[fleet.KeptResults](row)
		if err == nil {
			err = follows(kept, afterUID, task)
		}
		kept = append(kept, task)
		return err
	}, `SELECT task_uid, namespace, task_name, epoch FROM batchtask_result_task WHERE task_uid > $1
		UNION ALL
		SELECT task_uid, min(namespace), '', '' FROM batchtask_acknowledged AS a WHERE task_uid > $1
			AND NOT EXISTS (SELECT FROM batchtask_result_task AS t WHERE t.task_uid = a.task_uid) GROUP BY task_uid
		ORDER BY task_uid LIMIT $2`, afterUID, tasksPage)
	return kept, err
}

// follows checks the next task of a page. Who reads page after page comes to an end because
// their UIDs go up.
func follows(page []fleet.KeptResults, after string, next fleet.KeptResults) error {
	if len(page) > 0 {
		after = page[len(page)-1].TaskUID
	}
	switch {
	case len(page) == tasksPage:
		return contradicts("it returned more than the %d tasks that were asked for", tasksPage)
	case next.TaskUID <= after:
		return contradicts("it returned task %s after %s, which is not their order", shown(next.TaskUID), shown(after))
	}
	return texts(next.TaskUID, next.Namespace, next.TaskName, next.Epoch)
}

// Delete removes all results of a task, and how many devices have acknowledged it. It
// takes large ones in steps: after an error some may be left, and the task is still
// among Tasks. So it is again when a device acknowledges the task later.
//
// First it writes an epoch of its own, on the condition that the one that was read is
// there: from then on nobody can record. A run that takes the results over after that ends
// the deletion.
func (r *Results) Delete(ctx context.Context, kept fleet.KeptResults) error {
	doing := "deleting the results of task " + kept.TaskUID
	if err := r.condemn(ctx, doing, kept); err != nil {
		return err
	}
	tables := []string{"batchtask_result_range", "batchtask_result_failure"}
	for _, table := range tables {
		for deleted := int64(deletePage); deleted == deletePage; {
			err := r.change(ctx, doing, func(ctx context.Context, tx pgx.Tx) (err error) {
				deleted, err = remove(ctx, tx, kept.TaskUID, `DELETE FROM `+table+` WHERE task_uid = $1 AND ctid = ANY (ARRAY(
					SELECT ctid FROM `+table+` WHERE task_uid = $1 LIMIT $2))`, kept.TaskUID, deletePage)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return r.change(ctx, doing, func(ctx context.Context, tx pgx.Tx) error {
		for _, table := range []string{"batchtask_acknowledged", "batchtask_result_task"} {
			if _, err := remove(ctx, tx, kept.TaskUID, `DELETE FROM `+table+` WHERE task_uid = $1`, kept.TaskUID); err != nil {
				return err
			}
		}
		return nil
	})
}

// condemn writes the epoch of the deletion. There may be no row, where only
// acknowledgements are kept.
func (r *Results) condemn(ctx context.Context, doing string, kept fleet.KeptResults) error {
	return r.change(ctx, doing, func(ctx context.Context, tx pgx.Tx) error {
		var owner owner
		batch := &pgx.Batch{}
		owner.ask(batch, kept.TaskUID)
		batch.Queue(`UPDATE batchtask_result_task SET epoch = $3 WHERE task_uid = $1 AND epoch = $2`, kept.TaskUID, kept.Epoch, condemned)
		if err := tx.SendBatch(ctx, batch).Close(); err != nil || len(owner) == 0 {
			return err
		}
		return owner.mustBe(kept.Epoch)
	})
}

// remove deletes what belongs to a task that is still condemned, or has no row. It returns
// how many rows that were.
func remove(ctx context.Context, tx pgx.Tx, taskUID, sql string, args ...any) (n int64, err error) {
	var owner owner
	batch := &pgx.Batch{}
	owner.ask(batch, taskUID)
	batch.Queue(sql, args...).Exec(func(tag pgconn.CommandTag) error {
		n = tag.RowsAffected()
		return nil
	})
	if err := tx.SendBatch(ctx, batch).Close(); err != nil || len(owner) == 0 {
		return n, err
	}
	return n, owner.mustBe(condemned) // or all of it is undone
}

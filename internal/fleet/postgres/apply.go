package postgres

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet"
)

// applyChunk is how many shadows are changed by one statement: enough that the round
// trips do not count, and few enough that the rows are not locked for long.
const applyChunk = 4096

// The statements go through the names in their order: see session.
const (
	applyReadSQL = `SELECT n.ord, d.xmin, d.version, d.changed_ms, $4 = ANY (d.applied_tasks), d.reported, d.desired, d.metadata
		FROM unnest($3::text[]) WITH ORDINALITY AS n (name, ord)
		JOIN batchtask_device d ON d.namespace = $1 AND d.product_id = $2 AND d.device_name = n.name`
	applyLockSQL  = applyReadSQL + ` ORDER BY n.name FOR NO KEY UPDATE OF d`
	applyWriteSQL = `UPDATE batchtask_device AS d
		SET desired = n.desired, metadata = n.metadata, version = d.version + 1, changed_ms = $4,
			applied_tasks = (d.applied_tasks || $3::text)[greatest(cardinality(d.applied_tasks) - 14, 1):]
		FROM unnest($5::text[], $6::xid[], $7::text[], $8::text[]) AS n (name, row, desired, metadata)
		WHERE d.namespace = $1 AND d.product_id = $2 AND d.device_name = n.name AND d.xmin = n.row`
)

// ApplyDesired implements [fleet.Store]. For up to 4096 names it costs one read and
// one write, and another read and write where somebody else has written in between.
func (s *Store) ApplyDesired(ctx context.Context, p fleet.Product, u fleet.DesiredUpdate, names []string) []fleet.DesiredResult {
	a := &application{store: s, product: p, update: u, memo: newMemo(u)}
	sorted := slices.Clone(names)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	results := make(map[string]*fleet.DesiredResult, len(sorted))
	for chunk := range slices.Chunk(sorted, applyChunk) {
		devices := make([]*device, 0, len(chunk))
		for _, name := range chunk {
			d := &device{name: name, result: fleet.DesiredResult{Err: fleet.ErrDeviceGone}}
			results[name] = &d.result
			if validName(name) {
				devices = append(devices, d)
			}
		}
		a.apply(ctx, devices)
	}
	inOrder := make([]fleet.DesiredResult, len(names))
	for i, name := range names {
		inOrder[i] = *results[name]
	}
	return inOrder
}

// application is one call of ApplyDesired.
type application struct {
	store   *Store
	product fleet.Product
	update  fleet.DesiredUpdate
	memo    *memo
}

// device is one of the devices of a call.
type device struct {
	name   string
	result fleet.DesiredResult
	// row identifies the row that was read.
	row uint32
	// desired and metadata are to be written, if write is set.
	write             bool
	desired, metadata string
}

// apply gives each device, which are in the order of their names, its result.
//
// If the server refuses the values of a row it refuses the statement, so that is
// tried again with each half of the devices, until a row is left that fails alone.
func (a *application) apply(ctx context.Context, devices []*device) {
	if len(devices) == 0 {
		return
	}
	err := a.store.call(ctx, "updating shadows", func(ctx context.Context) error {
		conflict, err := a.try(ctx, a.store.pool, applyReadSQL, devices)
		if err != nil || !conflict {
			return err
		}
		// Some were not written. Those that were find the task in their shadow now.
		return pgx.BeginFunc(ctx, a.store.pool, func(tx pgx.Tx) error {
			conflict, err := a.try(ctx, tx, applyLockSQL, devices)
			if err == nil && conflict {
				err = errConflict
			}
			return err
		})
	})
	switch {
	case err == nil:
	case refused(err) && len(devices) > 1:
		half := len(devices) / 2
		a.apply(ctx, devices[:half])
		a.apply(ctx, devices[half:])
	default:
		for _, d := range devices {
			d.result = fleet.DesiredResult{Err: deviceError(err)}
		}
	}
}

// connection is a connection pool or a transaction.
type connection interface {
	querier
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// try reads the shadows, computes the results and writes those that change. conflict
// says that somebody else has written some of them in between, which are as they were.
func (a *application) try(ctx context.Context, db connection, readSQL string, devices []*device) (conflict bool, err error) {
	if err := a.read(ctx, db, readSQL, devices); err != nil {
		return false, err
	}
	var (
		names             []string
		rows              []uint32
		desired, metadata []string
	)
	for _, d := range devices {
		if d.write {
			names, rows = append(names, d.name), append(rows, d.row)
			desired, metadata = append(desired, d.desired), append(metadata, d.metadata)
		}
	}
	if len(names) == 0 {
		return false, nil
	}
	tag, err := db.Exec(ctx, applyWriteSQL, a.product.Namespace, a.product.ProductID,
		a.update.TaskUID, a.update.Now.UnixMilli(), names, rows, desired, metadata)
	return tag.RowsAffected() != int64(len(names)), err
}

// read reads the shadows of the devices and computes what becomes of them.
func (a *application) read(ctx context.Context, db connection, sql string, devices []*device) error {
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = d.name
		d.write, d.result = false, fleet.DesiredResult{Err: fleet.ErrDeviceGone}
	}
	rows, err := db.Query(ctx, sql, a.product.Namespace, a.product.ProductID, names, a.update.TaskUID)
	if err != nil {
		return err
	}
	var (
		ord int64
		row uint32
		in  input
	)
	return each(rows, func(r pgx.CollectableRow) error {
		if err := r.Scan(&ord, &row, &in.version, &in.timestamp, &in.applied, &in.reported, &in.desired, &in.metadata); err != nil {
			return err
		}
		d := devices[ord-1]
		d.row = row
		a.memo.apply(d, in)
		return nil
	})
}

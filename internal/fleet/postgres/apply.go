package postgres

import (
	"context"
	"encoding/binary"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/validation"
)

// applyChunk is how many shadows are changed by one statement: enough that the round
// trips do not count, and few enough that the rows are not locked for long.
const applyChunk = 4096

// The devices of a task mostly stand side by side in the index. So their rows are read
// as a range, which is several times cheaper than to look each one up, as long as that
// meets few others; the rest is read by name.
//
// A row is then written where it was found. It is still the one that was read if the
// same transaction has written it (see readSQL) and it has the same key: a table that
// was written anew as a whole, by VACUUM FULL, has another row in that place.
//
// All of them go through the names in their order: see session.
const (
	// The documents come only where they are not those that are expected.
	shadowColumns = `d.device_name, d.ctid, d.xmin, d.version, cardinality(d.applied_tasks), d.acknowledged,
		CASE WHEN d.reported = $4 AND d.desired = $5 AND d.metadata = $6 AND NOT $3 = ANY (d.applied_tasks) THEN NULL
			ELSE ARRAY[d.reported, d.desired, d.metadata, d.changed_ms::text, coalesce($3 = ANY (d.applied_tasks), false)::text] END`
	applyRangeSQL = `SELECT ` + shadowColumns + ` FROM batchtask_device d
		WHERE d.namespace = $1 AND d.product_id = $2 AND d.device_name >= $7 AND d.device_name <= $8
		ORDER BY d.device_name LIMIT $9`
	// One name after the other, however few devices the server believes there to be:
	// OFFSET 0 keeps it from going through the devices instead.
	applyReadSQL = `SELECT found.* FROM unnest($7::text[]) AS n (name) CROSS JOIN LATERAL (
		SELECT ` + shadowColumns + ` FROM batchtask_device d
		WHERE d.namespace = $1 AND d.product_id = $2 AND d.device_name = n.name OFFSET 0) AS found`
	// One name after the other, however few devices there were when this was planned.
	applyLockSQL = `SELECT locked.* FROM unnest($7::text[]) AS n (name) CROSS JOIN LATERAL (
		SELECT ` + shadowColumns + ` FROM batchtask_device d
		WHERE d.namespace = $1 AND d.product_id = $2 AND d.device_name = n.name FOR NO KEY UPDATE) AS locked`

	applySet = `UPDATE batchtask_device AS d SET version = d.version + 1, changed_ms = $4, acknowledged = n.acknowledged,
		applied_tasks = ` + appliedTasks + `, `
	appliedTasks = `CASE WHEN cardinality(d.applied_tasks) < 16 THEN d.applied_tasks || $3::text
			ELSE d.applied_tasks[cardinality(d.applied_tasks) - 14:] || $3::text END`
	// No index can serve these comparisons, so there is one way to find the rows: by
	// their place. With "=" a server that believes the product to be small, as it does
	// right after an import, goes through all of it for each name.
	applyWhere = ` WHERE d.ctid = n.place AND d.xmin = n.row AND d.namespace IS NOT DISTINCT FROM $1
		AND d.product_id IS NOT DISTINCT FROM $2 AND d.device_name IS NOT DISTINCT FROM n.name`
	// applyEachSQL writes documents of its own to each row, applyAllSQL the same to all.
	applyEachSQL = applySet + `desired = n.desired, metadata = n.metadata
		FROM unnest($5::text[], $6::tid[], $7::xid[], $8::smallint[], $9::smallint[], $10::text[], $11::text[])
		AS n (name, place, row, acknowledged, known, desired, metadata)` + applyWhere
	applyAllSQL = applySet + `desired = $10, metadata = $11
		FROM unnest($5::text[], $6::tid[], $7::xid[], $8::smallint[], $9::smallint[]) AS n (name, place, row, acknowledged, known)` + applyWhere
	// If no device has acknowledged a task by it, the update is cheaper alone.
	applyEachCountedSQL = `WITH written AS (` + applyEachSQL + applyReturning + `)` + countWritten
	applyAllCountedSQL  = `WITH written AS (` + applyAllSQL + applyReturning + `)` + countWritten
	applyReturning      = ` RETURNING d.applied_tasks[n.known + 1:n.acknowledged] AS tasks`
)

// ApplyDesired implements [fleet.Store]. For up to 4096 names it costs one write where
// their devices are all the devices between two names and have the same shadow. Else it
// costs one or two reads and one write, and one of each more where somebody else has
// written in between.
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
			if validation.DeviceName(name) {
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
	// place is where the row is that was read, and row the transaction that wrote it.
	place pgtype.TID
	row   uint32
	// desired and metadata are to be written, if write is set.
	write             bool
	desired, metadata string
	// acknowledged is how many of the tasks in the shadow the device has acknowledged then,
	// and known how many of them are counted already.
	acknowledged, known int16
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
		rest, err := a.applyAlike(ctx, devices)
		if err != nil {
			return err
		}
		if devices = rest; len(rest) == 0 {
			return nil
		}
		conflict, err := a.try(ctx, a.store.pool, false, devices)
		if err != nil || !conflict {
			return err
		}
		// Some were not written. Those that were find the task in their shadow now.
		return pgx.BeginFunc(ctx, a.store.pool, func(tx pgx.Tx) error {
			conflict, err := a.try(ctx, tx, true, devices)
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
func (a *application) try(ctx context.Context, db connection, lock bool, devices []*device) (conflict bool, err error) {
	for _, d := range devices {
		d.write, d.result = false, fleet.DesiredResult{Err: fleet.ErrDeviceGone}
	}
	if err := a.read(ctx, db, lock, devices); err != nil {
		return false, err
	}
	return a.write(ctx, db, devices)
}

// read reads the shadows of the devices and computes what becomes of them.
func (a *application) read(ctx context.Context, db connection, lock bool, devices []*device) error {
	sql := applyLockSQL
	if !lock {
		sql = applyReadSQL
		first, last := devices[0].name, devices[len(devices)-1].name
		limit := len(devices) + len(devices)/4
		n, reached, err := a.take(ctx, db, devices, applyRangeSQL, first, last, limit)
		if err != nil || n < limit {
			return err
		}
		devices = devices[slices.IndexFunc(devices, func(d *device) bool { return d.name >= reached }):]
		if devices[0].name == reached {
			devices = devices[1:]
		}
	}
	if len(devices) == 0 {
		return nil
	}
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = d.name
	}
	_, _, err := a.take(ctx, db, devices, sql, names)
	return err
}

// take hands the rows of a statement to the devices that they are of; both are in the
// order of the names. It returns how many rows there were, and the last name.
func (a *application) take(ctx context.Context, db connection, devices []*device, sql string, args ...any) (n int, last string, err error) {
	expected := *a.store.expected.Load()
	rows, err := db.Query(ctx, sql, append([]any{
		a.product.Namespace, a.product.ProductID, a.update.TaskUID, expected.reported, expected.desired, expected.metadata,
	}, args...)...)
	if err != nil {
		return 0, "", err
	}
	count := tally{expected: expected}
	err = each(rows, func(r pgx.CollectableRow) error {
		values := r.RawValues()
		n++
		for len(devices) > 0 && devices[0].name < string(values[0]) {
			devices = devices[1:]
		}
		last = string(values[0])
		if len(devices) == 0 || devices[0].name != last {
			return nil
		}
		d := devices[0]
		d.place = pgtype.TID{BlockNumber: binary.BigEndian.Uint32(values[1]), OffsetNumber: binary.BigEndian.Uint16(values[1][4:]), Valid: true}
		d.row = binary.BigEndian.Uint32(values[2])
		version := int64(binary.BigEndian.Uint64(values[3])) //nolint:gosec // the protocol sends the bits of an int64
		in := input{
			documents: expected.documents, version: version,
			tasks: int(binary.BigEndian.Uint32(values[4])), acknowledged: int(binary.BigEndian.Uint16(values[5])),
		}
		as := values[6] == nil
		if !as {
			if err := in.decode(r); err != nil {
				return err
			}
		}
		count.add(in, as)
		a.memo.apply(d, in)
		return nil
	})
	if err == nil {
		count.expect(a.store)
	}
	return n, last, err
}

// decode sets what comes with the documents.
func (in *input) decode(r pgx.CollectableRow) (err error) {
	var fields []string
	if err := r.Scan(nil, nil, nil, nil, nil, nil, &fields); err != nil {
		return err
	}
	in.documents, in.applied = documents{fields[0], fields[1], fields[2]}, fields[4] == "true"
	in.timestamp, err = strconv.ParseInt(fields[3], 10, 64)
	return err
}

// write writes what read has computed.
func (a *application) write(ctx context.Context, db connection, devices []*device) (conflict bool, err error) {
	var (
		names               []string
		places              []pgtype.TID
		rows                []uint32
		acknowledged, known []int16
		desired, metadata   []string
		same, count         = true, false
	)
	for _, d := range devices {
		if !d.write {
			continue
		}
		names, places, rows = append(names, d.name), append(places, d.place), append(rows, d.row)
		acknowledged, known = append(acknowledged, d.acknowledged), append(known, d.known)
		desired, metadata = append(desired, d.desired), append(metadata, d.metadata)
		same = same && d.desired == desired[0] && d.metadata == metadata[0]
		count = count || d.acknowledged > d.known
	}
	if len(names) == 0 {
		return false, nil
	}
	args := []any{a.product.Namespace, a.product.ProductID, a.update.TaskUID, a.update.Now.UnixMilli(), names, places, rows, acknowledged, known}
	if same {
		args = append(args, desired[0], metadata[0])
	} else {
		args = append(args, desired, metadata)
	}
	sql := map[[2]bool]string{
		{false, false}: applyEachSQL, {false, true}: applyEachCountedSQL,
		{true, false}: applyAllSQL, {true, true}: applyAllCountedSQL,
	}[[2]bool{same, count}]
	written, err := write(ctx, db, count, sql, args...)
	return written != int64(len(names)), err
}

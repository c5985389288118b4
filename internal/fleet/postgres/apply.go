package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/validation"
)

const (
	// applyChunk is how many shadows are changed by one statement: enough that the round
	// trips do not count, and few enough that the rows are not locked for long.
	applyChunk = 4096
	// applyBytes is how large the documents that one statement reads or writes may be
	// together, about. Shadows of the usual size come nowhere near.
	applyBytes = 32 << 20
)

// errBulky : the documents of the devices are too large to be held together.
var errBulky = fmt.Errorf("the documents of the shadows are larger than %d bytes together", applyBytes)

// The devices of a task mostly stand side by side in the index. So their rows are read
// as a range, which is several times cheaper than to look each one up, as long as that
// meets few others; the rest is read by name.
//
// A row is then written where it was found. It is still the one that was read if the
// same transaction has written it (see readSQL) and it has the same key: a table that
// was written anew as a whole, by VACUUM FULL, has another row in that place.
//
// All of them go through the names in their order, so that two calls that lock the same
// rows wait for each other and never both. That order is of the plan: see session. Where
// the settings of the session do not count, as behind some poolers, the server may find a
// deadlock and end one of both, which is then tried again; no result depends on it.
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
// tried again with each half of the devices, until a row is left that fails alone. So
// are devices whose documents are too large together.
func (a *application) apply(ctx context.Context, devices []*device) {
	if len(devices) == 0 {
		return
	}
	err := a.store.again(ctx, "updating shadows", func(ctx context.Context) error {
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
		return begin(ctx, a.store.pool, func(tx pgx.Tx) error {
			conflict, err := a.try(ctx, tx, true, devices)
			if err == nil && conflict {
				err = errNotWritten
			}
			return err
		})
	})
	switch {
	case err == nil:
	case (refused(err) || errors.Is(err, errBulky)) && len(devices) > 1:
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
		reached, err := a.takeRange(ctx, db, devices)
		if err != nil || reached == "" {
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
	return a.take(ctx, db, devices, func(name string, d *device) error {
		if d == nil {
			return contradicts("it returned device %s, which nobody asked for", shown(name))
		}
		return nil
	}, sql, names)
}

// takeRange reads the devices as a range of names, as far as it meets few others. reached
// is the name of the last row where that was not the end; else "".
func (a *application) takeRange(ctx context.Context, db connection, devices []*device) (reached string, err error) {
	first, last, limit := devices[0].name, devices[len(devices)-1].name, len(devices)+len(devices)/4
	n, before := 0, ""
	err = a.take(ctx, db, devices, func(name string, _ *device) error {
		// How far it has come depends on the order, which the statement demands.
		if n++; n > limit || name <= before || name < first || name > last {
			return contradicts("row %d of %d, device %s, is not after %s and from %s to %s",
				n, limit, shown(name), shown(before), shown(first), shown(last))
		}
		before = name
		return nil
	}, applyRangeSQL, first, last, limit)
	if n < limit {
		before = ""
	}
	return before, err
}

// take hands the rows of a statement to the devices that they are of; check looks at each
// name, with its device or nil.
func (a *application) take(ctx context.Context, db connection, devices []*device, check func(string, *device) error, sql string, args ...any) error {
	expected := *a.store.expected.Load()
	rows, err := db.Query(ctx, sql, append([]any{
		a.product.Namespace, a.product.ProductID, a.update.TaskUID, expected.reported, expected.desired, expected.metadata,
	}, args...)...)
	if err != nil {
		return err
	}
	read, size, count := newRoll(devices), 0, tally{expected: expected}
	err = each(rows, func(r pgx.CollectableRow) error {
		row := fieldsOf(r, 7)
		name := row.text(0)
		place, transaction := row.tid(1), row.uint32(2)
		in := input{
			documents: expected.documents, version: row.int64(3),
			tasks: int(row.int32(4)), acknowledged: int(row.int16(5)),
		}
		if row.err != nil {
			return row.err
		}
		d, err := read.find(name)
		if err == nil {
			err = check(name, d)
		}
		if err != nil || d == nil {
			return err
		}
		d.place, d.row = place, transaction
		as := row.missing(6)
		if !as {
			if err := in.decode(r); err != nil {
				return fmt.Errorf("device %s: %w", shown(name), err)
			}
			if size += in.size(); size > applyBytes {
				return errBulky
			}
		}
		count.add(in, as)
		a.memo.apply(d, in)
		return nil
	})
	if err == nil {
		count.expect(a.store)
	}
	return err
}

// decode sets what comes with the documents.
func (in *input) decode(r pgx.CollectableRow) (err error) {
	var fields []string
	if err := r.Scan(nil, nil, nil, nil, nil, nil, &fields); err != nil {
		return err
	}
	if len(fields) != 5 {
		return contradicts("a shadow has %d parts, not 5", len(fields))
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
		size                int
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
		size += len(d.desired) + len(d.metadata)
	}
	if len(names) == 0 {
		return false, nil
	}
	args := []any{a.product.Namespace, a.product.ProductID, a.update.TaskUID, a.update.Now.UnixMilli(), names, places, rows, acknowledged, known}
	if same {
		args = append(args, desired[0], metadata[0])
	} else {
		if size > applyBytes && len(names) > 1 {
			return false, errBulky
		}
		args = append(args, desired, metadata)
	}
	sql := map[[2]bool]string{
		{false, false}: applyEachSQL, {false, true}: applyEachCountedSQL,
		{true, false}: applyAllSQL, {true, true}: applyAllCountedSQL,
	}[[2]bool{same, count}]
	written, err := write(ctx, db, count, sql, args...)
	if err == nil {
		err = number("the number of updated devices", written, int64(len(names)))
	}
	return written != int64(len(names)), err
}

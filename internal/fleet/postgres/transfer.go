package postgres

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/validation"
)

const (
	// importChunk is how many devices are written in one transaction.
	importChunk = 10000
	// importBytes is how large their documents may be together, about.
	importBytes = 16 << 20
	// exportPage is how many devices are read at once.
	exportPage = 1000
)

// Device is a device with its shadow, as it is imported and exported.
type Device struct {
	// Name is the name of the device: 1 to 48 letters, digits, ':', '_' and '-'.
	Name string
	// Disabled takes the device out of every task.
	Disabled bool
	// Shadow is its shadow; the zero Shadow where none was ever written.
	Shadow fleet.Shadow
}

// ImportSummary says what became of the devices of an import.
type ImportSummary struct {
	// Added were not there.
	Added int64
	// Updated were there and have changed.
	Updated int64
	// Unchanged were there as they were imported, or with a newer shadow.
	Unchanged int64
}

// ImportError is a device that cannot be imported. Those of the chunks before it have
// been.
type ImportError struct {
	// Row is its number among those that were given, from 1.
	Row int64
	// Name is its name.
	Name string
	// Err says what is wrong with it.
	Err error
}

// Error says which device it is and what is wrong with it.
func (e *ImportError) Error() string { return fmt.Sprintf("device %d, %q: %v", e.Row, e.Name, e.Err) }

// Unwrap returns what is wrong.
func (e *ImportError) Unwrap() error { return e.Err }

var (
	errName         = errors.New("the name is not 1 to 48 letters, digits, ':', '_' and '-'")
	errTasks        = fmt.Errorf("more than %d applied tasks", fleet.MaxAppliedTasks)
	errAcknowledged = errors.New("the number of acknowledged tasks is below 0 or above that of the applied ones")
)

const (
	importTableSQL = `CREATE TEMPORARY TABLE batchtask_import (
			device_name text, disabled boolean, version bigint, changed_ms bigint,
			reported text, desired text, metadata text, applied_tasks text[], acknowledged smallint
		) ON COMMIT DROP`
	// Rows are locked in the order of the names, as everywhere.
	importLockSQL = `SELECT count(*) FROM unnest($3::text[]) AS n (name) CROSS JOIN LATERAL (
		SELECT FROM batchtask_device d WHERE d.namespace = $1 AND d.product_id = $2 AND d.device_name = n.name FOR NO KEY UPDATE) AS locked`
	// A device has xmax 0 only where its row is new. What the statement reads is as it
	// was before: was is of the devices that were there and are locked, and else NULL.
	importMergeSQL = `WITH merged AS (
			INSERT INTO batchtask_device AS d (namespace, product_id, device_name, disabled, version, changed_ms, reported, desired, metadata, applied_tasks, acknowledged)
			SELECT $1, $2, device_name, disabled, version, changed_ms, reported, desired, metadata, applied_tasks, acknowledged
				FROM batchtask_import ORDER BY device_name COLLATE "C"
			ON CONFLICT (namespace, product_id, device_name) DO UPDATE SET
				disabled = EXCLUDED.disabled,
				(version, changed_ms, reported, desired, metadata, applied_tasks, acknowledged) = (SELECT n.* FROM (
					SELECT EXCLUDED.version, EXCLUDED.changed_ms, EXCLUDED.reported, EXCLUDED.desired, EXCLUDED.metadata, EXCLUDED.applied_tasks, EXCLUDED.acknowledged
						WHERE EXCLUDED.version > d.version
					UNION ALL SELECT d.version, d.changed_ms, d.reported, d.desired, d.metadata, d.applied_tasks, d.acknowledged
						WHERE EXCLUDED.version <= d.version) AS n)
			WHERE d.disabled <> EXCLUDED.disabled OR d.version < EXCLUDED.version
			RETURNING device_name, xmax = 0 AS added, applied_tasks[:acknowledged] AS tasks),
		written AS (
			SELECT added, was IS NULL AS unseen, ARRAY(SELECT unnest(tasks) EXCEPT SELECT unnest(was)) AS tasks
			FROM (SELECT added, tasks, (SELECT d.applied_tasks[:d.acknowledged] FROM batchtask_device d
				WHERE d.namespace = $1 AND d.product_id = $2 AND d.device_name = m.device_name) AS was FROM merged m) AS m)` + counted + `
		SELECT count(*) FILTER (WHERE added), count(*) FILTER (WHERE NOT added), coalesce(bool_or(unseen AND NOT added), false) FROM written`
	exportSQL = `SELECT device_name, disabled, reported, desired, metadata, version, changed_ms, applied_tasks, acknowledged
		FROM batchtask_device WHERE namespace = $1 AND product_id = $2 AND device_name > $3 ORDER BY device_name LIMIT $4`
)

// Import adds devices to a product, or changes those that are there: a device is
// disabled or not as it is given, and its shadow is replaced by one of a greater
// version only, so that an import that is old, or is made again, takes nothing back.
// If devices has a name twice, it is as if they came in two imports.
//
// Devices are written in chunks. After an error the summary is that of the chunks that
// were written before, and the import may be made again from the beginning. The error
// is that of devices as it is, an [*ImportError], or passing.
func (s *Store) Import(ctx context.Context, p fleet.Product, devices iter.Seq2[Device, error]) (sum ImportSummary, err error) {
	var (
		row   int64
		size  int
		chunk []Device
		names = map[string]bool{}
	)
	flush := func() error {
		err := s.importChunk(ctx, p, chunk, &sum)
		chunk, size = chunk[:0], 0
		clear(names)
		return err
	}
	for d, err := range devices {
		if err != nil {
			return sum, err
		}
		row++
		if d, err = canonical(d); err != nil {
			return sum, &ImportError{Row: row, Name: d.Name, Err: err}
		}
		// A statement cannot change a row twice.
		if names[d.Name] || len(chunk) == importChunk || size > importBytes {
			if err := flush(); err != nil {
				return sum, err
			}
		}
		names[d.Name] = true
		size += len(d.Shadow.Reported) + len(d.Shadow.Desired) + len(d.Shadow.Metadata)
		chunk = append(chunk, d)
	}
	return sum, flush()
}

// canonical returns a device as it is stored, or what is wrong with it.
func canonical(d Device) (Device, error) {
	if !validation.DeviceName(d.Name) {
		return d, errName
	}
	if len(d.Shadow.AppliedTasks) > fleet.MaxAppliedTasks {
		return d, errTasks
	}
	if d.Shadow.Acknowledged < 0 || d.Shadow.Acknowledged > len(d.Shadow.AppliedTasks) {
		return d, errAcknowledged
	}
	for _, part := range []string{d.Shadow.Reported, d.Shadow.Desired} {
		if part == "" {
			continue
		}
		if _, err := shadow.ParseDesired(part); err != nil {
			return d, err
		}
	}
	doc, err := shadow.Parse(d.Shadow.Stored)
	if err != nil {
		return d, err
	}
	d.Shadow.Stored = doc.Stored()
	return d, nil
}

// importChunk writes devices, none of which is there twice, and adds to sum what
// became of them.
func (s *Store) importChunk(ctx context.Context, p fleet.Product, chunk []Device, sum *ImportSummary) error {
	if len(chunk) == 0 {
		return nil
	}
	var added, updated int64
	var conflict bool
	err := s.call(ctx, "importing devices", func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, importTableSQL); err != nil {
				return err
			}
			columns := []string{"device_name", "disabled", "version", "changed_ms", "reported", "desired", "metadata", "applied_tasks", "acknowledged"}
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"batchtask_import"}, columns, pgx.CopyFromSlice(len(chunk), func(i int) ([]any, error) {
				d := chunk[i]
				tasks := append([]string{}, d.Shadow.AppliedTasks...)
				return []any{d.Name, d.Disabled, d.Shadow.Version, d.Shadow.Timestamp, d.Shadow.Reported, d.Shadow.Desired, d.Shadow.Metadata, tasks, d.Shadow.Acknowledged}, nil
			}))
			if err != nil {
				return err
			}
			names := make([]string, len(chunk))
			for i, d := range chunk {
				names[i] = d.Name
			}
			slices.Sort(names)
			if _, err := tx.Exec(ctx, importLockSQL, p.Namespace, p.ProductID, names); err != nil {
				return err
			}
			// The table is another one in each transaction, so its statements are not kept.
			err = tx.QueryRow(ctx, importMergeSQL, pgx.QueryExecModeExec, p.Namespace, p.ProductID).Scan(&added, &updated, &conflict)
			if err == nil && conflict {
				err = errConflict // one was added after the others were locked
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	sum.Added, sum.Updated = sum.Added+added, sum.Updated+updated
	sum.Unchanged += int64(len(chunk)) - added - updated
	return nil
}

// Export returns all devices of a product in the order of their names, disabled ones
// included. It holds one page of them; devices that change meanwhile are returned as
// they were before or after. It ends with the first error, which is passing.
func (s *Store) Export(ctx context.Context, p fleet.Product) iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		after := ""
		for {
			var page []Device
			err := s.query(ctx, "exporting devices", func(row pgx.CollectableRow) error {
				var d Device
				err := row.Scan(&d.Name, &d.Disabled, &d.Shadow.Reported, &d.Shadow.Desired, &d.Shadow.Metadata,
					&d.Shadow.Version, &d.Shadow.Timestamp, &d.Shadow.AppliedTasks, &d.Shadow.Acknowledged)
				page = append(page, d)
				return err
			}, exportSQL, p.Namespace, p.ProductID, after, exportPage)
			if err != nil {
				yield(Device{}, err)
				return
			}
			for _, d := range page {
				if !yield(d, nil) {
					return
				}
			}
			if len(page) < exportPage {
				return
			}
			after = page[len(page)-1].Name
		}
	}
}

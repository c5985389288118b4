package postgres

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"batchtask.dev/operator/internal/fleet"
)

const (
	// importChunk is how many devices are written in one transaction.
	importChunk = 10000
	// importBytes is how large their documents may be together, about.
	importBytes = 16 << 20
)

// ImportSummary says what became of the devices of an import.
type ImportSummary struct {
	// Added were not there.
	Added int64
	// Updated were there and have changed.
	Updated int64
	// Unchanged were there as they were imported, or with a newer shadow.
	Unchanged int64
}

func (s ImportSummary) plus(o ImportSummary) ImportSummary {
	return ImportSummary{s.Added + o.Added, s.Updated + o.Updated, s.Unchanged + o.Unchanged}
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

// A chunk is compared with what is there, first, and devices that need no change are
// neither locked nor sent. If none of the others is there, as when a fleet is brought in,
// they are copied right into the table: a device that somebody else adds meanwhile breaks
// its key, and then nothing was written. Else they are copied into a table beside it, and
// merged.
//
// A device that is there keeps the tasks that its shadow remembers, and what it has
// acknowledged: it is the same device, which a task that goes on must not change again,
// and an import is not the word of the device. So an import counts no acknowledgement.
//
// In both ways rows are locked in the order of their names, as everywhere.
const (
	// No name is looked up if there is no device from the first to the last of them.
	importReadSQL = `SELECT found.* FROM unnest($3::text[]) AS n (name) CROSS JOIN LATERAL (
		SELECT d.device_name, d.disabled, d.version FROM batchtask_device d
		WHERE d.namespace = $1 AND d.product_id = $2 AND d.device_name = n.name OFFSET 0) AS found
		WHERE EXISTS (SELECT FROM batchtask_device d WHERE d.namespace = $1 AND d.product_id = $2
			AND d.device_name >= $4 AND d.device_name <= $5)`
	importTableSQL = `CREATE TEMPORARY TABLE batchtask_import (
			device_name text, disabled boolean, version bigint, changed_ms bigint, reported text, desired text, metadata text
		) ON COMMIT DROP`
	// A row that the statement has changed, and not added, has an xmax: its own lock. That
	// of a row that a trigger wrote once more, too: then added counts as updated.
	importMergeSQL = `WITH merged AS (
			INSERT INTO batchtask_device AS d (namespace, product_id, device_name, disabled, version, changed_ms, reported, desired, metadata)
			SELECT $1, $2, device_name, disabled, version, changed_ms, reported, desired, metadata
				FROM batchtask_import ORDER BY device_name COLLATE "C"
			ON CONFLICT (namespace, product_id, device_name) DO UPDATE SET
				disabled = EXCLUDED.disabled,
				(version, changed_ms, reported, desired, metadata) = (SELECT n.* FROM (
					SELECT EXCLUDED.version, EXCLUDED.changed_ms, EXCLUDED.reported, EXCLUDED.desired, EXCLUDED.metadata
						WHERE EXCLUDED.version > d.version
					UNION ALL SELECT d.version, d.changed_ms, d.reported, d.desired, d.metadata
						WHERE EXCLUDED.version <= d.version) AS n)
			WHERE d.disabled <> EXCLUDED.disabled OR d.version < EXCLUDED.version
			RETURNING xmax = 0 AS added)
		SELECT count(*) FILTER (WHERE added), count(*) FILTER (WHERE NOT added) FROM merged`
)

// importColumns are those of both tables, in the order of importValues.
var importColumns = []string{"device_name", "disabled", "version", "changed_ms", "reported", "desired", "metadata"}

// importValues returns what is written of a device.
func importValues(d Device) []any {
	return []any{d.Name, d.Disabled, d.Shadow.Version, d.Shadow.Timestamp, d.Shadow.Reported, d.Shadow.Desired, d.Shadow.Metadata}
}

// Import adds devices to a product, or changes those that are there: a device is
// disabled or not as it is given, and its shadow is replaced by one of a greater
// version only, so that an import that is old, or is made again, takes nothing back.
// Which tasks a shadow remembers stays as it is, and devices that are added remember
// none: AppliedTasks and Acknowledged are not looked at. If devices has a name twice, it
// is as if they came in two imports.
//
// Devices are written in chunks, and the next chunk is taken from devices while one is
// written. After an error the summary is that of the chunks that were written before,
// and the import may be made again from the beginning. The error is that of devices as
// it is, an [*ImportError], or passing.
func (s *Store) Import(ctx context.Context, p fleet.Product, devices iter.Seq2[Device, error]) (ImportSummary, error) {
	return inChunks(devices, func(chunk []Device) (ImportSummary, error) { return s.importChunk(ctx, p, chunk) })
}

// Preview returns what Import would do now, and only reads. A device that devices has
// twice is counted twice as what becomes of it first.
func (s *Store) Preview(ctx context.Context, p fleet.Product, devices iter.Seq2[Device, error]) (ImportSummary, error) {
	return inChunks(devices, func(chunk []Device) (sum ImportSummary, err error) {
		err = s.call(ctx, "comparing devices", func(ctx context.Context) error {
			c, err := s.compare(ctx, p, chunk)
			sum = ImportSummary{Added: int64(c.added), Updated: int64(len(c.differ) - c.added), Unchanged: int64(len(chunk) - len(c.differ))}
			return err
		})
		return sum, err
	})
}

// inChunks hands devices to do in chunks in which they are in canonical form and in the
// order of their names, and none is twice. One chunk is prepared while do has another.
func inChunks(devices iter.Seq2[Device, error], do func([]Device) (ImportSummary, error)) (ImportSummary, error) {
	var (
		row   int64
		size  int
		chunk []Device
		names = map[string]bool{}
		texts = newCanonicals()
		w     = chunkWriter{do: do}
	)
	for d, err := range devices {
		if err != nil {
			return w.end(err)
		}
		row++
		if d, err = texts.device(d); err != nil {
			return w.end(&ImportError{Row: row, Name: d.Name, Err: err})
		}
		// A statement cannot change a row twice.
		if names[d.Name] || len(chunk) == importChunk || size > importBytes {
			if err := w.write(chunk); err != nil {
				return w.end(err)
			}
			chunk, size = make([]Device, 0, len(chunk)), 0
			clear(names)
		}
		names[d.Name] = true
		size += len(d.Shadow.Reported) + len(d.Shadow.Desired) + len(d.Shadow.Metadata)
		chunk = append(chunk, d)
	}
	return w.end(w.write(chunk))
}

// chunkWriter hands one chunk after the other to do, and does not wait for the last.
type chunkWriter struct {
	do      func([]Device) (ImportSummary, error)
	sum     ImportSummary
	running chan error // of the last chunk; nil where there is none
}

// write returns once the chunk before has been written, with the error of that.
func (w *chunkWriter) write(chunk []Device) error {
	if err := w.wait(); err != nil || len(chunk) == 0 {
		return err
	}
	running := make(chan error, 1)
	w.running = running
	go func() {
		slices.SortFunc(chunk, func(a, b Device) int { return strings.Compare(a.Name, b.Name) })
		sum, err := w.do(chunk)
		if err == nil {
			w.sum = w.sum.plus(sum)
		}
		running <- err
	}()
	return nil
}

func (w *chunkWriter) wait() error {
	if w.running == nil {
		return nil
	}
	err := <-w.running
	w.running = nil
	return err
}

// end returns what was written in all, and the first error: err is that of a chunk, or of
// devices after it.
func (w *chunkWriter) end(err error) (ImportSummary, error) {
	if before := w.wait(); before != nil {
		err = before
	}
	return w.sum, err
}

// importChunk writes a chunk, and returns what became of its devices.
func (s *Store) importChunk(ctx context.Context, p fleet.Product, chunk []Device) (sum ImportSummary, err error) {
	err = s.again(ctx, "importing devices", func(ctx context.Context) (err error) {
		if sum, err = s.tryImport(ctx, p, chunk, false); isTaken(err) {
			sum, err = s.tryImport(ctx, p, chunk, true) // takes what was added since
		}
		return err
	})
	return sum, err
}

// isTaken reports whether a device was there already.
func isTaken(err error) bool {
	server, ok := errors.AsType[*pgconn.PgError](err)
	return ok && server.Code == "23505" && server.ConstraintName == "batchtask_device_pkey"
}

// tryImport writes a chunk, as a merge if merge is set. Else the error may be one of
// isTaken, if somebody else has added one of its devices meanwhile.
func (s *Store) tryImport(ctx context.Context, p fleet.Product, chunk []Device, merge bool) (sum ImportSummary, err error) {
	c, err := s.compare(ctx, p, chunk)
	if err != nil || len(c.differ) == 0 {
		return ImportSummary{Unchanged: int64(len(chunk))}, err
	}
	var added, updated int64
	err = begin(ctx, s.pool, func(tx pgx.Tx) (err error) {
		if c.added == len(c.differ) && !merge {
			added, err = copyDevices(ctx, tx, p, c.differ)
			return err
		}
		added, updated, err = mergeDevices(ctx, tx, p, c.differ)
		return err
	})
	return ImportSummary{Added: added, Updated: updated, Unchanged: int64(len(chunk)) - added - updated}, err
}

// comparison is what is to be done for a chunk.
type comparison struct {
	// differ are the devices that are not there or differ, in the order of their names.
	differ []Device
	// added is how many of them are not there.
	added int
}

// compare compares a chunk, whose devices are in the order of their names, with those
// that are there.
func (s *Store) compare(ctx context.Context, p fleet.Product, chunk []Device) (c comparison, err error) {
	names := namesOf(chunk)
	rows, err := s.pool.Query(ctx, importReadSQL, p.Namespace, p.ProductID, names, names[0], names[len(names)-1])
	if err != nil {
		return c, err
	}
	there := map[string]Device{}
	err = each(rows, func(row pgx.CollectableRow) error {
		var is Device
		if err := row.Scan(&is.Name, &is.Disabled, &is.Shadow.Version); err != nil {
			return err
		}
		_, asked := slices.BinarySearch(names, is.Name)
		if _, twice := there[is.Name]; twice || !asked {
			return contradicts("it returned device %s, which nobody asked for, or returned it twice", shown(is.Name))
		}
		there[is.Name] = is
		return nil
	})
	if err != nil {
		return c, err
	}
	for _, d := range chunk {
		is, exists := there[d.Name]
		if !exists {
			c.added++
		}
		if !exists || d.Disabled != is.Disabled || d.Shadow.Version > is.Shadow.Version {
			c.differ = append(c.differ, d)
		}
	}
	return c, nil
}

// copyDevices adds devices, none of which is there, and returns how many.
func copyDevices(ctx context.Context, tx pgx.Tx, p fleet.Product, devices []Device) (added int64, err error) {
	columns := append([]string{"namespace", "product_id"}, importColumns...)
	added, err = tx.CopyFrom(ctx, pgx.Identifier{"batchtask_device"}, columns, pgx.CopyFromSlice(len(devices), func(i int) ([]any, error) {
		return append([]any{p.Namespace, p.ProductID}, importValues(devices[i])...), nil
	}))
	if err == nil && added != int64(len(devices)) {
		err = contradicts("it has taken %d of %d new devices", added, len(devices))
	}
	return added, err
}

// mergeDevices adds or changes devices, none of which is there twice, and returns how
// many of each there were. One that is as it should be by now is none of them.
func mergeDevices(ctx context.Context, tx pgx.Tx, p fleet.Product, devices []Device) (added, updated int64, err error) {
	if _, err := tx.Exec(ctx, importTableSQL); err != nil {
		return 0, 0, err
	}
	copied, err := tx.CopyFrom(ctx, pgx.Identifier{"batchtask_import"}, importColumns, pgx.CopyFromSlice(len(devices), func(i int) ([]any, error) {
		return importValues(devices[i]), nil
	}))
	if err == nil && copied != int64(len(devices)) {
		err = contradicts("it has taken %d of %d devices", copied, len(devices))
	}
	if err != nil {
		return 0, 0, err
	}
	// The table is another one in each transaction, so its statements are not kept.
	err = tx.QueryRow(ctx, importMergeSQL, pgx.QueryExecModeExec, p.Namespace, p.ProductID).Scan(&added, &updated)
	if err == nil && (added < 0 || updated < 0 || added > copied-updated) {
		err = contradicts("of %d devices it has added %d and updated %d", copied, added, updated)
	}
	return added, updated, err
}

func namesOf(devices []Device) []string {
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = d.Name
	}
	return names
}

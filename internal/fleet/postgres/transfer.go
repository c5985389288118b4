package postgres

import (
	"context"
	"iter"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/validation"
)

const (
	// exportPage is how many devices are read at once, and listPage how many of which no
	// documents are read.
	exportPage, listPage = 1000, 8192

	// exported selects the page after a name, of a number of devices.
	exported  = ` FROM batchtask_device WHERE namespace = $1 AND product_id = $2 AND device_name > $3 ORDER BY device_name LIMIT $4`
	exportSQL = `SELECT device_name, disabled, version, changed_ms, reported, desired, metadata, applied_tasks, acknowledged` + exported
	listSQL   = `SELECT device_name, disabled, version, changed_ms` + exported
)

// Device is a device with its shadow, as it is imported and exported.
type Device struct {
	// Name is the name of the device: 1 to 48 letters, digits, ':', '_' and '-'.
	Name string
	// Disabled takes the device out of every task.
	Disabled bool
	// Shadow is its shadow; the zero Shadow where none was ever written.
	Shadow fleet.Shadow
	// Canonical says that the documents are as [shadow.Document.Stored] returned them, so
	// that an import need not read them once more to store them like that.
	Canonical bool
}

// Export returns all devices of a product in the order of their names, disabled ones
// included. It holds one page of them; devices that change meanwhile are returned as
// they were before or after. It ends with the first error, which is passing.
func (s *Store) Export(ctx context.Context, p fleet.Product) iter.Seq2[Device, error] {
	return s.pages(ctx, p, exportSQL, exportPage, func(d *Device) []any {
		return []any{
			&d.Name, &d.Disabled, &d.Shadow.Version, &d.Shadow.Timestamp,
			&d.Shadow.Reported, &d.Shadow.Desired, &d.Shadow.Metadata, &d.Shadow.AppliedTasks, &d.Shadow.Acknowledged,
		}
	})
}

// List is Export, of whose shadows only Version and Timestamp are filled in: the server
// does not read the others.
func (s *Store) List(ctx context.Context, p fleet.Product) iter.Seq2[Device, error] {
	return s.pages(ctx, p, listSQL, listPage, func(d *Device) []any {
		return []any{&d.Name, &d.Disabled, &d.Shadow.Version, &d.Shadow.Timestamp}
	})
}

// pages returns the devices that sql selects, of which fields are the columns.
func (s *Store) pages(ctx context.Context, p fleet.Product, sql string, size int, fields func(*Device) []any) iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		after := ""
		for {
			var page []Device
			err := s.query(ctx, "exporting devices", func(row pgx.CollectableRow) error {
				var d Device
				if err := row.Scan(fields(&d)...); err != nil {
					return err
				}
				if d.Name <= after || len(page) == size || !validation.DeviceName(d.Name) {
					return contradicts("it returned device %s, which is no name of a device or is not after %s in a page of %d",
						shown(d.Name), shown(after), size)
				}
				after = d.Name
				page = append(page, d)
				return nil
			}, sql, p.Namespace, p.ProductID, after, size)
			if err != nil {
				yield(Device{}, err)
				return
			}
			for _, d := range page {
				if !yield(d, nil) {
					return
				}
			}
			if len(page) < size {
				return
			}
		}
	}
}

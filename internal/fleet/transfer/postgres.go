package transfer

import (
	"context"
	"iter"
	"regexp"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
	"batchtask.dev/operator/internal/namefilter"
)

// postgresBatch is how many devices are written in one transaction: so many that its
// costs do not matter, and so few that a bar moves.
const postgresBatch = 5000

// InPostgres is a [Fleet] in a database.
type InPostgres struct {
	// Store is the database.
	Store *postgres.Store
	// Product is whose devices they are.
	Product fleet.Product
}

var _ Fleet = InPostgres{}

// Batch implements [Fleet].
func (InPostgres) Batch() int { return postgresBatch }

// Import implements [Fleet]. All devices are written or, after an error, none.
func (f InPostgres) Import(ctx context.Context, devices []devicefile.Device, _ func(int, error)) (Summary, error) {
	sum, err := f.Store.Import(ctx, f.Product, given(devices))
	return Summary(sum), err
}

// Preview implements [Fleet].
func (f InPostgres) Preview(ctx context.Context, devices []devicefile.Device) (Summary, error) {
	sum, err := f.Store.Preview(ctx, f.Product, given(devices))
	return Summary(sum), err
}

// given returns devices, as they were read from a file, as the store takes them.
func given(devices []devicefile.Device) iter.Seq2[postgres.Device, error] {
	return func(yield func(postgres.Device, error) bool) {
		for _, d := range devices {
			if !yield(postgres.Device{Name: d.Name, Disabled: d.Disabled, Shadow: fleet.Shadow{Stored: d.Shadow}, Canonical: true}, nil) {
				return
			}
		}
	}
}

// Export implements [Fleet].
func (f InPostgres) Export(ctx context.Context, shadows bool) iter.Seq2[devicefile.Device, error] {
	return func(yield func(devicefile.Device, error) bool) {
		devices := f.Store.List
		if shadows {
			devices = f.Store.Export
		}
		for d, err := range devices(ctx, f.Product) {
			if !yield(devicefile.Device{Name: d.Name, Disabled: d.Disabled, Shadow: d.Shadow.Stored}, err) {
				return
			}
		}
	}
}

// Get implements [Fleet].
func (f InPostgres) Get(ctx context.Context, name string) (devicefile.Device, error) {
	shadow, err := f.Store.ReadShadow(ctx, f.Product, name)
	if err != nil {
		return devicefile.Device{}, err
	}
	enabled, err := f.Store.Count(ctx, fleet.Query{Product: f.Product, Filter: namefilter.MustParse("^" + regexp.QuoteMeta(name) + "$")})
	return devicefile.Device{Name: name, Disabled: enabled == 0, Shadow: shadow.Stored}, err
}

// Package transfer brings devices into fleets and back, whatever the fleets are kept
// in, a batch at a time.
package transfer

import (
	"context"
	"iter"

	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
)

// Summary says what became of devices that were written.
type Summary struct {
	// Added were not there.
	Added int64
	// Updated were there and have changed.
	Updated int64
	// Unchanged were there as they were given, or with a shadow that is not older.
	Unchanged int64
}

func (s *Summary) add(other Summary) {
	s.Added, s.Updated, s.Unchanged = s.Added+other.Added, s.Updated+other.Updated, s.Unchanged+other.Unchanged
}

// Fleet is the devices of one product.
type Fleet interface {
	// Batch is how many devices Import is best given at once.
	Batch() int
	// Import adds devices, none of which is given twice, or changes those that are
	// there: a device is disabled or not as it is given, and its shadow is replaced by
	// one of a greater version only. A device that the fleet refuses is handed to
	// refused with its index, one at a time, and the others are written all the same.
	// After an error some have been written, and the summary counts those that are
	// known to be; the import may be made again.
	Import(ctx context.Context, devices []devicefile.Device, refused func(i int, err error)) (Summary, error)
	// Preview returns what Import would do now, if nothing was refused, and only reads.
	Preview(ctx context.Context, devices []devicefile.Device) (Summary, error)
	// Export returns all devices in the order of their names, disabled ones included.
	// Without shadows only the Version and Timestamp of those are filled in. Devices that
	// change meanwhile are returned as they were before or after. It ends with the first
	// error.
	Export(ctx context.Context, shadows bool) iter.Seq2[devicefile.Device, error]
	// Get returns one device. The error is [fleet.ErrDeviceGone] where there is none.
	Get(ctx context.Context, name string) (devicefile.Device, error)
}

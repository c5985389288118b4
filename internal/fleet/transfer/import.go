package transfer

import (
	"context"
	"errors"
	"io"

	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
)

// maxBatchBytes is how large the documents of a batch may be together, about.
const maxBatchBytes = 8 << 20

// Progress is how far an import has come.
type Progress struct {
	Summary
	// Bad is how many lines were refused, by the reader or by the fleet.
	Bad int64
	// Line and Bytes are how much of the file is done with: all devices up to there are
	// in the fleet, or were refused.
	Line, Bytes int64
}

// Good is how many devices are in the fleet.
func (p Progress) Good() int64 { return p.Added + p.Updated + p.Unchanged }

// Import reads devices and writes them to a fleet. Each bad line is handed to bad, in
// about the order of the lines, and counted; the others are imported. progress is
// called after each batch. An error ends the import; it may be made again from the
// beginning, which writes nothing that is there already.
func Import(ctx context.Context, r *devicefile.Reader, into Fleet, bad func(*devicefile.LineError), progress func(Progress)) (Progress, error) {
	var done Progress
	refuse := func(e *devicefile.LineError) {
		done.Bad++
		bad(e)
	}
	for end := false; !end; {
		batch, err := readBatch(ctx, r, into.Batch(), refuse)
		if end = errors.Is(err, io.EOF); err != nil && !end {
			return done, err
		}
		sum, err := into.Import(ctx, batch.devices, func(i int, err error) { refuse(&devicefile.LineError{Line: batch.lines[i], Err: err}) })
		done.add(sum)
		if err != nil {
			return done, err
		}
		done.Line, done.Bytes = r.Line(), r.Bytes()
		progress(done)
	}
	return done, nil
}

// batch is devices with the lines that they stand on.
type batch struct {
	devices []devicefile.Device
	lines   []int64
}

// readBatch reads up to so many lines; at the end of the file the error is [io.EOF], and
// the batch holds the last ones.
func readBatch(ctx context.Context, r *devicefile.Reader, n int, refuse func(*devicefile.LineError)) (b batch, err error) {
	size := 0
	for range n {
		if err := ctx.Err(); err != nil {
			return b, err
		}
		if size > maxBatchBytes {
			break
		}
		d, err := r.Next()
		if bad, ok := errors.AsType[*devicefile.LineError](err); ok {
			refuse(bad)
			continue
		}
		if err != nil {
			return b, err
		}
		size += len(d.Shadow.Reported) + len(d.Shadow.Desired) + len(d.Shadow.Metadata)
		b.devices, b.lines = append(b.devices, d), append(b.lines, r.Line())
	}
	return b, nil
}

// Check is a [Fleet] that takes everything and keeps nothing, for a dry run. All are
// counted as unchanged.
type Check struct{ Fleet }

// Batch implements [Fleet].
func (Check) Batch() int { return 1000 }

// Import implements [Fleet].
func (Check) Import(ctx context.Context, devices []devicefile.Device, _ func(int, error)) (Summary, error) {
	return Summary{Unchanged: int64(len(devices))}, ctx.Err()
}

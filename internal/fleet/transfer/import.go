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
//
// One batch is read while another is written. r is done with when Import returns, but for
// a read that is under way then.
func Import(ctx context.Context, r *devicefile.Reader, into Fleet, bad func(*devicefile.LineError), progress func(Progress)) (Progress, error) {
	var done Progress
	refuse := func(e *devicefile.LineError) {
		done.Bad++
		bad(e)
	}
	batches, quit := make(chan batch), make(chan struct{})
	defer close(quit)
	go func() {
		for end := false; !end; {
			b := readBatch(ctx, r, into.Batch())
			end = b.err != nil
			select {
			case batches <- b:
			case <-quit:
				return
			}
		}
	}()
	for end := false; !end; {
		batch := <-batches
		for _, e := range batch.bad {
			refuse(e)
		}
		if end = errors.Is(batch.err, io.EOF); batch.err != nil && !end {
			return done, batch.err
		}
		sum, err := into.Import(ctx, batch.devices, func(i int, err error) { refuse(&devicefile.LineError{Line: batch.lines[i], Err: err}) })
		done.add(sum)
		if err != nil {
			return done, err
		}
		done.Line, done.Bytes = batch.line, batch.bytes
		progress(done)
	}
	return done, nil
}

// batch is devices with the lines that they stand on.
type batch struct {
	devices []devicefile.Device
	lines   []int64
	// bad are the lines between that hold none.
	bad []*devicefile.LineError
	// line and bytes are how far the file was read.
	line, bytes int64
	// err is why nothing comes after; at the end of the file [io.EOF].
	err error
}

// readBatch reads up to so many lines.
func readBatch(ctx context.Context, r *devicefile.Reader, n int) (b batch) {
	size := 0
	for range n {
		if b.err = ctx.Err(); b.err != nil || size > maxBatchBytes {
			break
		}
		d, err := r.Next()
		if bad, ok := errors.AsType[*devicefile.LineError](err); ok {
			b.bad = append(b.bad, bad)
			continue
		}
		if b.err = err; err != nil {
			break
		}
		size += len(d.Shadow.Reported) + len(d.Shadow.Desired) + len(d.Shadow.Metadata)
		b.devices, b.lines = append(b.devices, d), append(b.lines, r.Line())
	}
	b.line, b.bytes = r.Line(), r.Bytes()
	return b
}

// Check is a [Fleet] that is read and not written, for a dry run: Import says what it
// would do. Fleet may be nil where nothing is there yet.
type Check struct{ Fleet }

// Batch implements [Fleet].
func (Check) Batch() int { return 1000 }

// Import implements [Fleet].
func (c Check) Import(ctx context.Context, devices []devicefile.Device, _ func(int, error)) (Summary, error) {
	if c.Fleet == nil {
		return Summary{Added: int64(len(devices))}, ctx.Err()
	}
	return c.Preview(ctx, devices)
}

package fleet

import (
	"context"
	"time"
)

// Failure is a device that failed for good in a task.
type Failure struct {
	// Name is the name of the device.
	Name string
	// Reason is one word for programs, such as those of [DeviceError].
	Reason string
	// Message is a sentence for people.
	Message string
}

// ResultRange is what became of the devices of a task in a range of names. A device
// in the range that is in neither list has no result: it was deleted, or did not
// match.
type ResultRange struct {
	// After is the exclusive lower bound; "" is from the start.
	After string
	// Upto is the inclusive upper bound; "" is to the end.
	Upto string
	// Succeeded are the names of the devices that have succeeded, in any order.
	Succeeded []string
	// Failed are the devices that have failed, in any order.
	Failed []Failure
	// At is the time of the results, kept to the millisecond.
	At time.Time
}

// ResultTotals is what has been recorded of a task.
type ResultTotals struct {
	// Upto is the greatest name of any range; "" where nothing was recorded.
	Upto string
	// Succeeded and Failed are how many devices have which result.
	Succeeded, Failed int64
	// FirstFailed are the first devices that failed, as many as were asked for.
	FirstFailed []Failure
}

// Results is where the result of each device of a task is kept. Tasks are known by
// their UID. What was recorded last for a name counts, so results may be recorded
// again. Errors are passing; after one, the results may have been recorded.
type Results interface {
	// Record keeps the results of a range of names, in the place of all that was
	// recorded for names within it.
	Record(ctx context.Context, taskUID string, p Product, results ResultRange) error
	// Totals returns what has been recorded, with the first failures.
	Totals(ctx context.Context, taskUID string, failures int) (ResultTotals, error)
	// Tasks returns the UIDs of all tasks of which anything is kept, whosever they are.
	Tasks(ctx context.Context) (taskUIDs []string, err error)
	// Delete removes all that is kept of a task.
	Delete(ctx context.Context, taskUID string) error
}

// ResultsKeeper is a Store that can tell where results are kept.
type ResultsKeeper interface {
	Store
	// ResultsOf returns where the results of a product's tasks are kept; nil for
	// nowhere. An error is passing.
	ResultsOf(ctx context.Context, p Product) (Results, error)
}

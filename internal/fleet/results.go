package fleet

import (
	"context"
	"errors"
	"time"
)

// ErrForeignEpoch says that results were not recorded, taken over or deleted, because
// another run has taken them over since. It is final for the run that gets it.
var ErrForeignEpoch = errors.New("another run has taken over the results of the task")

// ResultsRun is a run of a task that records results.
type ResultsRun struct {
	// TaskUID, Namespace and TaskName are those of the BatchTask.
	TaskUID, Namespace, TaskName string
	// Epoch names the run. No other run has it, whichever process it is in.
	Epoch string
	// Sure reports whether the process may take tasks over at this moment.
	Sure func() bool
}

// KeptResults says of which task results are kept.
type KeptResults struct {
	// TaskUID is the UID of the BatchTask, Namespace its namespace.
	TaskUID, Namespace string
	// TaskName is its name; "" where that is not known, as of results that an older
	// program recorded, or where nothing is kept but what devices have acknowledged.
	TaskName string
	// Epoch is that of the run that has the results; "" as TaskName.
	Epoch string
}

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
	// Epoch is that of the run; see [ResultsRun].
	Epoch string
}

// ResultTotals is what has been recorded of a task behind a name, without a gap. What
// lies behind a gap does not count: a server may have lost what was recorded in between.
type ResultTotals struct {
	// Upto is up to where there is no gap; the name itself where nothing follows it.
	Upto string
	// Succeeded and Failed are how many devices behind the name, up to Upto, have which
	// result.
	Succeeded, Failed int64
	// FirstFailed are the first of those that failed, as many as were asked for.
	FirstFailed []Failure
}

// Results is where the result of each device of a task is kept. Tasks are known by
// their UID. What was recorded last for a name counts, so results may be recorded
// again. Errors are passing, but for [ErrForeignEpoch]; after one, the results may have
// been recorded.
type Results interface {
	// Take gives a task's results to a run, from whichever had them, and returns what was
	// recorded behind the name after, with so many of the first failures. From then on no
	// other run can record, and so what is returned stays true. It returns
	// [ErrForeignEpoch] where another run takes them at the same time, and a passing error
	// where the run is not sure that it may: it is asked once it is known whose they are.
	Take(ctx context.Context, run ResultsRun, p Product, after string, failures int) (ResultTotals, error)
	// Record keeps the results of a range of names, in the place of all that was
	// recorded for names within it. The task's results must be those of the run.
	Record(ctx context.Context, taskUID string, p Product, results ResultRange) error
	// Tasks returns the first tasks after a UID, in the order of UIDs, of which anything is
	// kept, whosever they are; none at the end. One call returns at most 1000.
	Tasks(ctx context.Context, afterUID string) ([]KeptResults, error)
	// Delete removes all that is kept of a task. It returns [ErrForeignEpoch] where the
	// results are not those of the epoch that Tasks has shown.
	Delete(ctx context.Context, kept KeptResults) error
}

// ResultsKeeper is a Store that can tell where results are kept.
type ResultsKeeper interface {
	Store
	// ResultsOf returns where the results of a product's tasks are kept; nil for
	// nowhere. An error is passing.
	ResultsOf(ctx context.Context, p Product) (Results, error)
}

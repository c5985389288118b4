// Package fleet says what the project needs of a place where devices and their
// shadows are kept. The subpackages are such places; fleettest is the suite that
// all of them pass.
package fleet

import (
	"context"
	"errors"
	"time"

	"batchtask.dev/operator/internal/namefilter"
	"batchtask.dev/operator/internal/shadow"
)

// Product names a product. A product ID belongs to one namespace in the cluster.
type Product struct {
	Namespace string
	ProductID string
}

// Query selects devices of a product by name. Names are compared by byte.
type Query struct {
	Product Product
	// Filter selects the names that it matches anywhere, unless it is anchored; nil
	// selects all (CreateTask, deviceNameFilter).
	Filter *namefilter.Filter
	// After is an exclusive lower bound; "" is from the start.
	After string
	// Until is an inclusive upper bound; "" is to the end. With After it makes a
	// range, so that a task can be split.
	Until string
}

// Store is where devices and their shadows are kept. It is safe for concurrent
// use. Of several devices with one name and product, the oldest counts, and the
// others do not exist for a Store.
//
// Errors are passing, and the call may be tried again later, unless they are
// [ErrDeviceGone] or a [*DeviceError].
type Store interface {
	// Sync waits until the store has seen all devices of the namespace as they were
	// written before the call, so that a task that was created after a device is for
	// that device too. ctx bounds the wait; a store may set a bound of its own.
	Sync(ctx context.Context, namespace string) error
	// Count returns how many enabled devices match.
	Count(ctx context.Context, q Query) (int64, error)
	// Total returns how many devices the product has, disabled ones included.
	Total(ctx context.Context, p Product) (int64, error)
	// Scan returns the names of the first enabled devices that match, in ascending
	// order, at most limit, which is at least 1. more is false when no other device
	// matches. To go on, set q.After to the last name.
	Scan(ctx context.Context, q Query, limit int) (names []string, more bool, err error)
	// ApplyDesired merges an update into the desired part of the shadows of the named
	// devices. It returns one result for each name, in the same order.
	ApplyDesired(ctx context.Context, p Product, u DesiredUpdate, names []string) []DesiredResult
	// ReadShadow returns the shadow of a device as it was last written; the zero Shadow
	// where none was. A device that is disabled has its shadow all the same: no task
	// is for it, but it may still report. The error is [ErrDeviceGone] where there is
	// no such device.
	ReadShadow(ctx context.Context, p Product, name string) (Shadow, error)
	// ChangeShadow writes what change makes of the shadow of a device, on the condition
	// that nobody else has written in between. Else it calls change again with the
	// shadow as it is then, a bounded number of times; so change has no effect but its
	// result. A shadow that change returns as it was is not written. An error of change
	// is returned as it is, and nothing is written.
	//
	// Other errors are those of ReadShadow, a [*DeviceError] for a shadow that cannot be
	// stored, [ErrConflict], or passing in another way. After a passing error the shadow may have been written: the
	// answer to a write can be lost.
	ChangeShadow(ctx context.Context, p Product, name string, change func(Shadow) (Shadow, error)) error
	// Acknowledged returns of each of these tasks, by UID, how many devices of the
	// product have acknowledged it; see [Shadow.Acknowledged]. Tasks that nobody has
	// acknowledged may be missing. It is cheap: it does not look at each device. What was
	// written a moment ago may be missing.
	Acknowledged(ctx context.Context, p Product, taskUIDs []string) (map[string]Acknowledged, error)
}

// Acknowledged is how many devices have acknowledged a task.
type Acknowledged struct {
	// Devices is how many have, of which the store knows it.
	Devices int64
	// Gone is how many more had, and were deleted since, or have forgotten the task for
	// later ones. It counts from when the Store was first asked for the task.
	Gone int64
	// Total says that the store forgets nothing: Devices never falls, and Gone is 0.
	Total bool
}

// DesiredUpdate is a change to the desired part of shadows, made by a task.
type DesiredUpdate struct {
	// TaskUID is the metadata.uid of the task. A shadow takes the update of a task
	// once; see [DesiredUpdate.Apply].
	TaskUID string
	// Patch is merged into the desired part; see [shadow.Document.MergeDesired].
	Patch shadow.Object
	// Now is the time of the change and of the delta message.
	Now time.Time
}

// DesiredResult is what became of one device.
type DesiredResult struct {
	// Delta is the message to publish to the device; nil when there is nothing that
	// it should change, and when Err is set.
	Delta []byte
	// Err is nil, [ErrDeviceGone], a [*DeviceError], or a passing error.
	Err error
}

var (
	// ErrDeviceGone : there is no such device. One that a task has selected was deleted
	// after its name had been read; it has no result then: it is neither a success nor a
	// failure.
	ErrDeviceGone = errors.New("the device does not exist")
	// ErrConflict : others have changed the shadow, or the device itself, each time that it
	// was to be written, and nothing was written. It is passing; another try is worth while
	// after a moment.
	ErrConflict = errors.New("others were faster each time")
	// ErrNoProduct : there is no such product, or it is not known yet, so nobody can say
	// which devices it has. It is passing: a product may be made again.
	ErrNoProduct = errors.New("the product does not exist")
	// ErrNotReady : the store has not read its devices yet. It is passing.
	ErrNotReady = errors.New("the devices have not been read yet")
)

// Guard stands before each call to a server that others depend on as well.
type Guard interface {
	// Enter waits until the call may be made. The call has the context that it returns, and
	// ends with leave, which is told its error, nil included, and returns it as the caller
	// is to see it. The error of Enter is passing.
	Enter(ctx context.Context) (inside context.Context, leave func(error) error, err error)
}

// UnavailableError says in a sentence for anybody why a store cannot be used. It is passing.
type UnavailableError struct {
	// Reason holds nothing that only who may read the Secret of a database may know: no
	// name of a user, a database or a host, nor what is found there.
	Reason string
	// Err is the whole truth, for the log.
	Err error
}

// Error returns the reason.
func (e *UnavailableError) Error() string { return e.Reason }

// Unwrap returns Err.
func (e *UnavailableError) Unwrap() error { return e.Err }

// Fault is what an error of a call says of the server that a store is at.
type Fault struct {
	// Reason is that of an [*UnavailableError].
	Reason string
	// Away says that the server is not there, so that the next call would only wait as well.
	Away bool
	// Answered says that it is there.
	Answered bool
}

// DeviceError is a failure that trying again does not change.
type DeviceError struct {
	// Reason is one word for programs: v1alpha1.ReasonShadowTooLarge,
	// ReasonShadowTooDeep or ReasonInvalidShadow.
	Reason string
	// Message is a sentence for people. It holds no value of the shadow.
	Message string
}

// Error returns the reason and the message.
func (e *DeviceError) Error() string { return e.Reason + ": " + e.Message }

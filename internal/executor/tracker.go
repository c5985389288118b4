package executor

import (
	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// MaxFailures is how many failed devices a task remembers by name.
const MaxFailures = 20

// result is what became of one device.
type result uint8

const (
	pending result = iota
	succeeded
	failed
	gone // the device no longer exists; it is in no count
)

// tracker holds the devices that have been read from the fleet and are not yet
// counted, in the order of their names. Its watermark is the last name before
// which every device has its result; only devices up to it are counted. So a
// checkpoint of cursor and counts is exact, whatever happens after it: a
// restarted task begins behind the cursor, and serves again at most the devices
// that the tracker held.
//
// A checkpoint is worth something only once it is written. So the tracker keeps
// its devices until then: it takes in no more than its size beyond the last
// checkpoint that was saved, not beyond the watermark, which may have run far ahead
// of it. A device has a sequence number, and
//
//	saved ≤ told ≤ head ≤ tail ≤ saved + len(ring)
//
//	 number  0  1  2  3  4  5  6  7  8  9 10 11 12 13
//	 result  ✓  ✗  ✓  ✓  ✓  ✓  ✗  ✓  ·  ✓  ·  ·             · none yet
//	               ▲        ▲        ▲           ▲
//	             saved     told     head        tail
//	             in the    somebody the water-  the next
//	             status,   knows of mark: the   device to
//	             or in a   this     first not   be added
//	             record             counted
//
// The tracker is not safe for concurrent use.
type tracker struct {
	ring  []tracked // the device with number n is at n mod len(ring)
	saved uint64
	told  uint64
	head  uint64
	tail  uint64

	cursor    string
	succeeded int64
	failed    int64
	failures  []v1alpha1.DeviceFailure
}

type tracked struct {
	name    string
	result  result
	reason  string
	message string
}

func newTracker(size int, cursor string, succeeded, failed int64, failures []v1alpha1.DeviceFailure) *tracker {
	return &tracker{
		ring: make([]tracked, size), cursor: cursor, succeeded: succeeded, failed: failed,
		failures: append([]v1alpha1.DeviceFailure(nil), failures...),
	}
}

// room is how many devices can be added.
func (t *tracker) room() int { return len(t.ring) - int(t.tail-t.saved) } //nolint:gosec // at most len(ring)

// save notes that the checkpoint with this head has been written.
func (t *tracker) save(head uint64) {
	if head > t.saved && head <= t.head {
		t.saved, t.told = head, max(t.told, head)
	}
}

// tell notes that somebody knows how far the watermark is.
func (t *tracker) tell() { t.told = t.head }

// untold is how many devices the watermark has passed since somebody was told.
func (t *tracker) untold() uint64 { return t.head - t.told }

// open is how many devices have been added and not counted.
func (t *tracker) open() int { return int(t.tail - t.head) } //nolint:gosec // at most len(ring)

// add takes a device in and returns its number. There must be room.
func (t *tracker) add(name string) uint64 {
	seq := t.tail
	t.ring[seq%uint64(len(t.ring))] = tracked{name: name}
	t.tail++
	return seq
}

// name returns the name of a device that has no result yet.
func (t *tracker) name(seq uint64) string { return t.ring[seq%uint64(len(t.ring))].name }

// settle records the result of a device and moves the watermark. It reports
// whether the device had none before; a second result changes nothing.
func (t *tracker) settle(seq uint64, r result, reason, message string) bool {
	if seq < t.head || seq >= t.tail {
		return false
	}
	device := &t.ring[seq%uint64(len(t.ring))]
	if device.result != pending {
		return false
	}
	device.result, device.reason, device.message = r, reason, message
	for t.head < t.tail && t.ring[t.head%uint64(len(t.ring))].result != pending {
		t.count(&t.ring[t.head%uint64(len(t.ring))])
		t.head++
	}
	return true
}

// settleRest gives every device that has no result this one.
func (t *tracker) settleRest(r result, reason, message string) {
	for seq := t.head; seq < t.tail; seq++ {
		t.settle(seq, r, reason, message)
	}
}

// close counts what has a result above the watermark as well, and forgets the
// rest. After it the cursor means nothing: it is for tasks that will not go on.
func (t *tracker) close() {
	for ; t.head < t.tail; t.head++ {
		if device := &t.ring[t.head%uint64(len(t.ring))]; device.result != pending {
			t.count(device)
		}
	}
}

func (t *tracker) count(device *tracked) {
	t.cursor = device.name
	switch device.result {
	case succeeded:
		t.succeeded++
	case failed:
		t.failed++
		if len(t.failures) < MaxFailures {
			t.failures = append(t.failures, v1alpha1.DeviceFailure{DeviceName: device.name, Reason: device.reason, Message: device.message})
		}
	case gone, pending:
	}
}

// since returns the results of the devices from this number to the watermark.
func (t *tracker) since(seq uint64) fleet.ResultRange {
	var part fleet.ResultRange
	for ; seq < t.head; seq++ {
		switch d := &t.ring[seq%uint64(len(t.ring))]; d.result {
		case succeeded:
			part.Succeeded = append(part.Succeeded, d.name)
		case failed:
			part.Failed = append(part.Failed, fleet.Failure{Name: d.name, Reason: d.reason, Message: d.message})
		case gone, pending:
		}
	}
	return part
}

// resume counts what has been recorded behind the cursor. The tracker must be empty.
func (t *tracker) resume(totals fleet.ResultTotals) {
	t.cursor, t.succeeded, t.failed = totals.Upto, t.succeeded+totals.Succeeded, t.failed+totals.Failed
	for _, f := range totals.FirstFailed {
		if len(t.failures) == MaxFailures {
			return
		}
		t.failures = append(t.failures, v1alpha1.DeviceFailure{DeviceName: f.Name, Reason: f.Reason, Message: f.Message})
	}
}

package executor

import (
	"strings"
	"time"
	"unicode/utf8"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// MaxFailures is how many failed devices a task remembers by name.
const MaxFailures = 20

// MaxPending is how many devices at or before its cursor a checkpoint may name that have
// no result.
const MaxPending = 100

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

	// Devices up to this number are pending ones of the checkpoint that the task was
	// resumed from: their names are not greater than its cursor.
	resumed uint64
	// parked says that the watermark has passed devices without a result, by park, which
	// began at parkedFrom.
	parked     bool
	parkedFrom uint64

	cursor    string
	succeeded int64
	failed    int64
	failures  []v1alpha1.DeviceFailure
}

type tracked struct {
	name    string
	result  result
	late    bool          // its message has no result and no place in the window any more
	sent    time.Duration // when its message was sent, since the run began; 0 for not on its way
	reason  string
	message string
}

func newTracker(size int, cursor string, succeeded, failed int64, failures []v1alpha1.DeviceFailure) *tracker {
	return &tracker{
		ring: make([]tracked, size), cursor: cursor, succeeded: succeeded, failed: failed,
		failures: append([]v1alpha1.DeviceFailure(nil), failures...),
	}
}

// readmit takes in the pending devices of the checkpoint, before any other.
func (t *tracker) readmit(names []string) {
	for _, name := range names {
		t.add(name)
	}
	t.resumed = t.tail
}

// at is the device with a number.
func (t *tracker) at(seq uint64) *tracked { return &t.ring[seq%uint64(len(t.ring))] }

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
	device.result, device.reason, device.message = r, clip(reason, maxReason), clip(message, maxMessage)
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

// overdue finds messages that were sent by then and have no result. It returns how many it
// had not found before.
func (t *tracker) overdue(then time.Duration) (n int) {
	for seq := t.head; seq < t.tail; seq++ {
		if d := t.at(seq); d.result == pending && d.sent != 0 && d.sent <= then && !d.late {
			d.late = true
			n++
		}
	}
	return n
}

// landed notes that the message of a device is not on its way any more. It reports whether
// overdue had found it.
func (t *tracker) landed(seq uint64) (late bool) {
	d := t.at(seq) // of the same device still: it has not left the ring before its message
	late, d.late, d.sent = d.late, false, 0
	return late
}

// park moves the watermark over devices that have no result, at most most of them, to the
// last behind which nothing can be counted then. These are pending, in no count. It is for
// a task that goes on later; nothing is added after it.
func (t *tracker) park(most int) {
	t.parked, t.parkedFrom = true, t.head
	upto, open := t.head, 0
	for seq := t.head; seq < t.tail; seq++ {
		if t.at(seq).result != pending {
			upto = seq + 1
		} else if open++; open > most {
			break
		}
	}
	for ; t.head < upto; t.head++ {
		if device := t.at(t.head); device.result != pending {
			t.count(device)
		}
	}
}

// pending are the names of the devices at or before the cursor that are in no count. Of those
// that the checkpoint named before, they are also the ones that have a result and stand behind
// one that has none: a run that goes on from here would miss them.
func (t *tracker) pending() []string {
	var names []string
	from := t.head
	if t.parked {
		from = t.parkedFrom
	}
	for seq := from; seq < max(t.head, t.resumed); seq++ {
		if device := t.at(seq); seq >= t.head || device.result == pending {
			names = append(names, device.name)
		}
	}
	return names
}

func (t *tracker) count(device *tracked) {
	t.cursor = max(t.cursor, device.name) // that of a pending one is before the cursor
	switch device.result {
	case succeeded:
		t.succeeded++
	case failed:
		t.failed++
		t.remember(device.name, device.reason, device.message)
	case gone, pending:
	}
}

// remember keeps the name of a failed device, if it is one of the first.
func (t *tracker) remember(name, reason, message string) {
	if len(t.failures) < MaxFailures {
		t.failures = append(t.failures, v1alpha1.DeviceFailure{
			DeviceName: name, Reason: clip(reason, maxReason), Message: clip(message, maxMessage),
		})
	}
}

// What the schema of status.failures allows, in characters.
const (
	maxReason  = 64
	maxMessage = 256
)

// clip shortens a text to most characters, as the schema counts them: runes, after bytes
// that are not UTF-8 have become U+FFFD, as they do in JSON.
func clip(text string, most int) string {
	if len(text) <= most && utf8.ValidString(text) {
		return text
	}
	text = strings.ToValidUTF8(text, "\uFFFD")
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	return string([]rune(text)[:most-1]) + "…"
}

// since returns the results of the devices from this number to the watermark. Each part is
// a range without a device that is pending: a resumed task counts what follows its cursor
// without a gap, and pending devices of the checkpoint are such gaps, each of one name.
func (t *tracker) since(seq uint64, after string) []fleet.ResultRange {
	var parts []fleet.ResultRange
	for ; seq < min(t.head, t.resumed); seq++ {
		if device := t.at(seq); device.result != pending {
			part := fleet.ResultRange{After: before(device.name), Upto: device.name}
			device.addTo(&part)
			parts = append(parts, part)
		}
	}
	part := fleet.ResultRange{After: after, Upto: after}
	for ; seq < t.head; seq++ {
		device := t.at(seq)
		if device.result == pending {
			if t.parked {
				if part.Upto > part.After {
					parts = append(parts, part)
				}
				part = fleet.ResultRange{After: device.name, Upto: device.name}
			}
			continue // a task that is cancelled does not go on: gaps mean nothing
		}
		part.Upto = device.name
		device.addTo(&part)
	}
	if part.Upto > part.After {
		parts = append(parts, part)
	}
	return parts
}

func (d *tracked) addTo(part *fleet.ResultRange) {
	switch d.result {
	case succeeded:
		part.Succeeded = append(part.Succeeded, d.name)
	case failed:
		part.Failed = append(part.Failed, fleet.Failure{Name: d.name, Reason: d.reason, Message: d.message})
	case gone, pending:
	}
}

// before returns a text that is less than name and greater than any other name of a device
// that is: '~' comes after every character of names.
func before(name string) string {
	last := len(name) - 1
	return name[:last] + string(rune(name[last]-1)) + "~"
}

// resume begins after what has been recorded.
func (t *tracker) resume(totals fleet.ResultTotals) {
	t.cursor, t.succeeded, t.failed = totals.Upto, t.succeeded+totals.Succeeded, t.failed+totals.Failed
	for _, f := range totals.FirstFailed {
		t.remember(f.Name, f.Reason, f.Message)
	}
}

package postgres

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// memo computes what an update makes of shadows, once for all that are equal but for
// their version: the devices of a product mostly are. The rules are those of
// [fleet.DesiredUpdate.Apply] and stand there alone.
type memo struct {
	update fleet.DesiredUpdate
	known  map[key]outcome
	// last is the outcome of the content that came last: the next is likely the same.
	last    outcome
	lastKey key
}

// documents are those of a shadow as they are stored.
type documents struct{ reported, desired, metadata string }

func (d documents) size() int { return len(d.reported) + len(d.desired) + len(d.metadata) }

// mostExpected is the size of the documents up to which a store expects that other
// devices have the same; larger ones would cost more to send than is saved.
const mostExpected = 4096

// input is a shadow as it was read.
type input struct {
	documents
	version, timestamp int64
	applied            bool // the task is remembered
	// tasks is how many tasks the shadow remembers, and acknowledged how many of them
	// the device has acknowledged.
	tasks, acknowledged int
}

// fault returns what a shadow cannot be whatever its documents are; nil for nothing. The
// table forbids most of it, and who owns the table can change that.
func (in *input) fault() error {
	switch {
	case in.tasks < 0 || in.tasks > fleet.MaxAppliedTasks || in.acknowledged < 0 || in.acknowledged > in.tasks:
		return invalidShadow("the stored shadow remembers %d tasks, %d of them acknowledged, and not up to %d tasks and no more acknowledged than these",
			in.tasks, in.acknowledged, fleet.MaxAppliedTasks)
	case in.version < 0: // the others of the same documents have other versions
		return invalidShadow("the stored shadow has the version %d, below 0", in.version)
	case !in.applied && in.version == math.MaxInt64: // one that is applied stays as it is
		return invalidShadow("%v", shadow.ErrLastVersion)
	}
	return nil
}

func invalidShadow(format string, args ...any) error {
	return &fleet.DeviceError{Reason: v1alpha1.ReasonInvalidShadow, Message: fmt.Sprintf(format, args...)}
}

// key is what the outcome of an update depends on, beside the version.
type key struct {
	documents
	applied   bool
	timestamp int64 // 0 unless applied: the update replaces it
	// Both are 0 if applied: the update leaves them as they are.
	tasks, acknowledged int
}

// outcome is what the update makes of a content.
type outcome struct {
	shared            bool // by all shadows of that content
	err               error
	write             bool
	desired, metadata string
	// acknowledged is how many of the tasks that the shadow remembers then the device
	// has acknowledged, and known how many of them it had before.
	acknowledged, known int16
	// message is the delta message but for the version, which stands between the two;
	// both are empty where there is none.
	before, after string
}

// mostKnown bounds the memory of the devices of one call that have nothing in common.
const mostKnown = 1024

func newMemo(u fleet.DesiredUpdate) *memo {
	return &memo{update: u, known: map[key]outcome{}}
}

// apply sets the result of a device, and what is to be written.
func (m *memo) apply(d *device, in input) {
	if err := in.fault(); err != nil {
		d.result, d.write = fleet.DesiredResult{Err: err}, false
		return
	}
	o := m.outcome(in)
	d.result.Err = o.err
	d.write, d.desired, d.metadata, d.acknowledged, d.known = o.write, o.desired, o.metadata, o.acknowledged, o.known
	if o.before == "" {
		d.result.Delta = nil
		return
	}
	delta := make([]byte, 0, len(o.before)+len(o.after)+20)
	delta = append(delta, o.before...)
	if o.after != "" {
		delta = strconv.AppendInt(delta, version(in, o.write), 10)
	}
	delta = append(delta, o.after...)
	d.result.Delta = delta
}

// outcome returns what becomes of a shadow.
func (m *memo) outcome(in input) outcome {
	k := key{documents: in.documents, applied: in.applied}
	if in.applied {
		k.timestamp = in.timestamp
	} else {
		k.tasks, k.acknowledged = in.tasks, in.acknowledged
	}
	if m.last.shared && k == m.lastKey {
		return m.last
	}
	o, ok := m.known[k]
	if !ok {
		if o = m.compute(in); o.shared && len(m.known) < mostKnown {
			m.known[k] = o
		}
	}
	m.last, m.lastKey = o, k
	return o
}

// version returns the version of the shadow after the update.
func version(in input, write bool) int64 {
	if write {
		return in.version + 1
	}
	return in.version
}

// compute returns the outcome for one shadow. It is shared if the version was found in
// the delta message, in its place at the end.
func (m *memo) compute(in input) outcome {
	was := fleet.Shadow{Stored: shadow.Stored{
		Reported: in.reported, Desired: in.desired, Metadata: in.metadata, Version: in.version, Timestamp: in.timestamp,
	}}
	if in.applied {
		was.AppliedTasks = []string{m.update.TaskUID}
	} else {
		was.AppliedTasks, was.Acknowledged = slices.Repeat([]string{m.update.TaskUID + " is another"}, in.tasks), in.acknowledged
	}
	applied, err := m.update.Apply(was)
	if err != nil {
		return outcome{shared: true, err: err}
	}
	is := applied.Shadow
	forgotten := in.tasks + 1 - len(is.AppliedTasks)
	o := outcome{
		shared: true, write: applied.Write, desired: is.Desired, metadata: is.Metadata, before: string(applied.Delta),
		acknowledged: int16(is.Acknowledged), known: int16(max(0, in.acknowledged-forgotten)), //nolint:gosec // at most fleet.MaxAppliedTasks
	}
	if applied.Delta == nil {
		return o
	}
	after := `,"timestamp":` + strconv.FormatInt(is.Timestamp, 10) + `}}`
	before, found := strings.CutSuffix(o.before, `"version":`+strconv.FormatInt(is.Version, 10)+after)
	if !found {
		o.shared = false
		return o
	}
	o.before, o.after = before+`"version":`, after
	return o
}

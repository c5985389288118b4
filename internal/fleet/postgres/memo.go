package postgres

import (
	"encoding/binary"
	"strconv"
	"strings"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// memo computes what an update makes of shadows, once for all that are equal but for
// their version: the devices of a product mostly are. The rules are those of
// [fleet.DesiredUpdate.Apply] and stand there alone.
type memo struct {
	update fleet.DesiredUpdate
	known  map[string]outcome // by key
	key    []byte
}

// input is a shadow as it was read. The documents are the driver's.
type input struct {
	reported, desired, metadata []byte
	version, timestamp          int64
	applied                     bool // the task is remembered
}

// keyOf returns what the outcome of an update depends on: all but the version, and but
// for the timestamp where the update replaces that.
func (m *memo) keyOf(in input) []byte {
	key := binary.AppendUvarint(m.key[:0], uint64(len(in.reported)))
	key = binary.AppendUvarint(key, uint64(len(in.desired)))
	key = append(append(append(key, in.reported...), in.desired...), in.metadata...)
	if in.applied {
		key = binary.AppendVarint(append(key, 0), in.timestamp)
	}
	m.key = key
	return key
}

// outcome is what the update makes of a content.
type outcome struct {
	err               error
	write             bool
	desired, metadata string
	// message is the delta message but for the version, which stands between the two;
	// both are empty where there is none.
	before, after string
}

// mostKnown bounds the memory of the devices of one call that have nothing in common.
const mostKnown = 1024

func newMemo(u fleet.DesiredUpdate) *memo {
	return &memo{update: u, known: map[string]outcome{}}
}

// apply sets the result of a device, and what is to be written.
func (m *memo) apply(d *device, in input) {
	key := m.keyOf(in)
	o, ok := m.known[string(key)]
	if !ok {
		var shared bool
		if o, shared = m.compute(in); shared && len(m.known) < mostKnown {
			m.known[string(key)] = o
		}
	}
	d.result.Err = o.err
	d.write, d.desired, d.metadata = o.write, o.desired, o.metadata
	if o.before == "" {
		d.result.Delta = nil
		return
	}
	delta := make([]byte, 0, len(o.before)+len(o.after)+20)
	delta = append(delta, o.before...)
	if o.after != "" {
		delta = strconv.AppendInt(delta, version(in, o.write), 10)
	}
	d.result.Delta = append(delta, o.after...)
}

// version returns the version of the shadow after the update.
func version(in input, write bool) int64 {
	if write {
		return in.version + 1
	}
	return in.version
}

// compute returns the outcome for one shadow. It holds for all of that content if
// shared is set: if the version was found in the delta message, in its place at the
// end.
func (m *memo) compute(in input) (o outcome, shared bool) {
	was := fleet.Shadow{Stored: shadow.Stored{
		Reported: string(in.reported), Desired: string(in.desired), Metadata: string(in.metadata), Version: in.version, Timestamp: in.timestamp,
	}}
	if in.applied {
		was.AppliedTasks = []string{m.update.TaskUID}
	}
	applied, err := m.update.Apply(was)
	if err != nil {
		return outcome{err: err}, true
	}
	o = outcome{write: applied.Write, desired: applied.Shadow.Desired, metadata: applied.Shadow.Metadata, before: string(applied.Delta)}
	if applied.Delta == nil {
		return o, true
	}
	number := strconv.FormatInt(applied.Shadow.Version, 10)
	after := `,"timestamp":` + strconv.FormatInt(applied.Shadow.Timestamp, 10) + `}}`
	before, found := strings.CutSuffix(o.before, `"version":`+number+after)
	if !found {
		return o, false
	}
	o.before, o.after = before+`"version":`, after
	return o, true
}

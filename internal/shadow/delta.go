package shadow

import (
	"encoding/json"
	"strconv"
	"strings"
)

// Delta is what a device still has to do: the desired fields that differ from
// the reported ones.
type Delta struct {
	// State has those fields with their desired values, nested as in the desired
	// part.
	State Object
	// Metadata has the time at which each leaf of State was last changed.
	Metadata Object
}

// Delta returns the desired fields that differ from the reported ones, or nil
// when none does. A field that has been deleted from the desired part is nobody's
// wish any more, so it is not in the delta, whatever the device reports; a field
// that only the device reports is not either. Objects are compared field by
// field, arrays as a whole, and numbers by value: 1, 1.0 and 1e0 are equal, and
// 9007199254740993 and 9007199254740992 are not.
func (d *Document) Delta() *Delta {
	state, meta := d.differing(d.Desired, d.Reported, d.Metadata.Desired)
	if state == nil {
		return nil
	}
	return &Delta{State: state, Metadata: meta}
}

// differing returns the fields of desired that differ from reported, with their
// metadata; nil for none.
func (d *Document) differing(desired, reported, meta Object) (state, stateMeta Object) {
	for key, want := range desired {
		have, exists := reported[key]
		wantObject, wantIsObject := want.(Object)
		haveObject, haveIsObject := have.(Object)
		var valueMeta Object
		switch {
		case exists && wantIsObject && haveIsObject:
			keyMeta, _ := meta[key].(Object)
			var value Object
			if value, valueMeta = d.differing(wantObject, haveObject, keyMeta); value == nil {
				continue
			}
			want = value
		case exists && equal(want, have):
			continue
		default:
			valueMeta = d.timesOf(want, meta[key])
		}
		if state == nil {
			state, stateMeta = Object{}, Object{}
		}
		state[key], stateMeta[key] = want, valueMeta
	}
	return state, stateMeta
}

// timesOf returns the metadata of value in its shape, whatever shape the stored
// metadata has: a leaf whose time is not stored gets that of the document.
func (d *Document) timesOf(value, meta any) Object {
	stored, _ := meta.(Object)
	object, isObject := value.(Object)
	if !isObject || len(object) == 0 {
		if _, isTime := stored["timestamp"].(json.Number); isTime && len(stored) == 1 {
			return stored
		}
		return leaf(d.Timestamp)
	}
	times := make(Object, len(object))
	for key, inner := range object {
		times[key] = d.timesOf(inner, stored[key])
	}
	return times
}

// DeltaMessage returns the message that tells a device what to change, or nil
// when there is nothing to tell:
//
//	{"type":"delta","timestamp":s,"payload":{"state":{…},"metadata":{…},"version":n,"timestamp":ms}}
//
// nowSeconds is the time of the message in Unix seconds; the timestamps inside
// payload are Unix milliseconds.
func DeltaMessage(doc *Document, nowSeconds int64) []byte {
	delta := doc.Delta()
	if delta == nil {
		return nil
	}
	return encode(struct {
		Type      string  `json:"type"`
		Timestamp int64   `json:"timestamp"`
		Payload   payload `json:"payload"`
	}{
		Type:      "delta",
		Timestamp: nowSeconds,
		Payload:   payload{delta.State, delta.Metadata, doc.Version, doc.Timestamp},
	})
}

// equal compares two JSON values; numbers by value.
func equal(a, b any) bool {
	switch a := a.(type) {
	case Object:
		b, ok := b.(Object)
		if !ok || len(a) != len(b) {
			return false
		}
		for key, value := range a {
			other, exists := b[key]
			if !exists || !equal(value, other) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !equal(a[i], b[i]) {
				return false
			}
		}
		return true
	case json.Number:
		b, ok := b.(json.Number)
		return ok && sameNumber(a, b)
	default:
		return a == b
	}
}

// sameNumber compares by value and without rounding. Devices differ in how they
// write a number, and one that answers 1.0 to a wish of 1 has done its part; a
// comparison by digits would push the same delta to it for ever.
func sameNumber(a, b json.Number) bool {
	if a == b {
		return true
	}
	x, ok := parseDecimal(string(a))
	if !ok {
		return false
	}
	y, ok := parseDecimal(string(b))
	return ok && x == y
}

// decimal is a number as digits × 10^exponent, without zeros at either end of
// digits, so that equal numbers are equal structs.
type decimal struct {
	negative bool
	digits   string
	exponent int64
}

// parseDecimal reads a JSON number; ok is false when its exponent does not fit 32
// bits: such numbers are equal only when they are written alike.
func parseDecimal(s string) (d decimal, ok bool) {
	s, d.negative = strings.CutPrefix(s, "-")
	mantissa, exponent := s, "0"
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		mantissa, exponent = s[:i], s[i+1:]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return decimal{}, true
	}
	e, err := strconv.ParseInt(exponent, 10, 32)
	if err != nil {
		return decimal{}, false
	}
	d.digits = strings.TrimRight(digits, "0")
	d.exponent = e - int64(len(fraction)) + int64(len(digits)-len(d.digits))
	return d, true
}

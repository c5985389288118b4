// Package shadow holds the device shadow: the document and its rules. It does
// no I/O and knows no store.
//
// A shadow has a reported part, which the device writes, and a desired part,
// which applications write. Both are JSON objects. Metadata mirrors them with a
// {"timestamp": milliseconds} in the place of each leaf. The difference between
// the two, the delta, is computed and never stored.
//
// A leaf is anything that is not an object with fields: a string, a number, true,
// false, null inside an array, an array as a whole, or an empty object.
//
// Values are never changed in place: a merge builds new objects where something
// changes and shares the rest. So one patch may be merged into many documents at
// the same time.
package shadow

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"
)

const (
	// MaxDepth is how many levels each part of a shadow may have. Each object and
	// each array is a level: {"a":1} and {} have depth 1, {"a":{"b":1}} and
	// {"a":[1]} depth 2, {"a":[{"b":1}]} depth 3.
	MaxDepth = 5
	// MaxBytes is how many bytes each part of a shadow may have as JSON without
	// white space: 16 KiB.
	MaxBytes = 16 << 10
	// MaxGivenVersion is the greatest version that a shadow may be given from outside, by
	// an import: 2⁵³ − 1, which every reader of JSON keeps. It leaves room for more changes
	// than can be made.
	MaxGivenVersion = 1<<53 - 1
)

// ErrLastVersion : the version cannot grow any more. Nobody gets there by changes: somebody
// has written that version into the store, and can write a lower one.
var ErrLastVersion = fmt.Errorf("the shadow has the last version there is, %d, and cannot change any more; write a lower version into its store", int64(math.MaxInt64))

// Object is a JSON object whose values are nil, bool, string, json.Number, []any
// and Object. Numbers keep the digits that were written. Objects come from
// [ParseDesired], [ParseMessage] and [Parse].
type Object = map[string]any

// Document is the shadow of one device.
type Document struct {
	// Reported is the state that the device reported; nil where there is none.
	Reported Object
	// Desired is the state that applications want; nil where there is none. It is
	// never an empty object.
	Desired Object
	// Metadata says when the leaves of both were last changed.
	Metadata Metadata
	// Version grows by one with each change; 0 for a shadow never written.
	Version int64
	// Timestamp is the time of the last change, in Unix milliseconds; 0 for a
	// shadow never written.
	Timestamp int64
}

// Metadata mirrors the two parts of a shadow, with {"timestamp": n} in the place
// of each leaf, n being the Unix milliseconds of its last change.
type Metadata struct {
	Reported Object `json:"reported,omitempty"`
	Desired  Object `json:"desired,omitempty"`
}

// Stored is a shadow as stores keep it. The documents are strings, since both
// Kubernetes and databases would change long numbers inside them.
type Stored struct {
	// Reported, Desired and Metadata are JSON objects, or empty where there is
	// nothing.
	Reported, Desired, Metadata string
	// Version is [Document.Version].
	Version int64
	// Timestamp is [Document.Timestamp], Unix milliseconds.
	Timestamp int64
}

// Parse reads a stored shadow. It does not apply [MaxDepth] and [MaxBytes]: what
// was stored while the limits were others can still be read, and repaired.
// Errors are of type [*DocumentError].
func Parse(s Stored) (*Document, error) {
	doc := &Document{Version: s.Version, Timestamp: s.Timestamp}
	var meta Object
	for _, part := range []struct {
		name string
		text string
		into *Object
	}{
		{"reported", s.Reported, &doc.Reported},
		{"desired", s.Desired, &doc.Desired},
		{"metadata", s.Metadata, &meta},
	} {
		if part.text == "" {
			continue
		}
		object, err := parseObject(part.text, unlimited)
		if err != nil {
			return nil, fmt.Errorf("reading the stored %s part: %w", part.name, err)
		}
		*part.into = object
	}
	doc.Desired = orNil(doc.Desired)
	doc.Reported = orNil(doc.Reported)
	// Metadata that is missing or of another shape is no error: it tells times, not
	// values, and a leaf without one counts as changed when the document was.
	doc.Metadata.Reported, _ = meta["reported"].(Object)
	doc.Metadata.Desired, _ = meta["desired"].(Object)
	return doc, nil
}

// Stored returns the document as stores keep it. Equal documents give equal
// strings.
func (d *Document) Stored() Stored {
	s := Stored{Version: d.Version, Timestamp: d.Timestamp}
	if len(d.Reported) > 0 {
		s.Reported = encodeObject(d.Reported)
	}
	if len(d.Desired) > 0 {
		s.Desired = encodeObject(d.Desired)
	}
	if len(d.Metadata.Reported) > 0 || len(d.Metadata.Desired) > 0 {
		s.Metadata = encodeMetadata(d.Metadata)
	}
	return s
}

// leaf is the metadata of one leaf that was changed at the given time.
func leaf(milliseconds int64) Object {
	return Object{"timestamp": json.Number(strconv.FormatInt(milliseconds, 10))}
}

// orNil returns nil for an empty object: a part without fields does not exist.
func orNil(o Object) Object {
	if len(o) == 0 {
		return nil
	}
	return o
}

// MergeDesired merges patch into the desired part as JSON Merge Patch (RFC 7396)
// says: objects are merged field by field, null deletes a field, any other value
// replaces what was there, arrays as a whole. Leaves that get another value, and
// only those, get now as their time.
//
// The version grows by one and the timestamp becomes now with each merge, also
// when no value changed: a merge is an event that devices and applications may
// count, so what a task does to the version does not depend on what was there.
// changed reports whether a value changed. A number that is written in another
// way but has the same value (1 and 1.0) is the same and stays as it was.
//
// The error is a [*DocumentError] for [ErrTooDeep] or [ErrTooLarge], when the
// desired part would be over [MaxDepth] or [MaxBytes], or [ErrLastVersion]; the
// document is then as it was.
func (d *Document) MergeDesired(patch Object, now time.Time) (changed bool, err error) {
	if d.Version == math.MaxInt64 {
		return false, ErrLastVersion
	}
	desired, changed, err := d.part(desiredPart).merged(patch, now.UnixMilli())
	if err != nil {
		return false, err
	}
	d.Desired, d.Metadata.Desired = desired.state, desired.meta
	d.step(now)
	return changed, nil
}

// step counts a change.
func (d *Document) step(now time.Time) {
	d.Version++
	d.Timestamp = now.UnixMilli()
}

// Names of the two parts of a shadow.
const (
	reportedPart = "reported"
	desiredPart  = "desired"
)

// part is one of the two parts of a shadow.
type part struct {
	name        string
	state, meta Object
}

func (d *Document) part(name string) part {
	if name == reportedPart {
		return part{name, d.Reported, d.Metadata.Reported}
	}
	return part{name, d.Desired, d.Metadata.Desired}
}

// merged returns the part with patch merged into it, and whether a value is
// another one; an error if that is over the limits.
func (p part) merged(patch Object, now int64) (after part, changed bool, err error) {
	state, meta, changed := merge(p.state, p.meta, patch, leaf(now))
	if err := checkLimits(state); err != nil {
		return part{}, false, fmt.Errorf("merging the %s state: %w", p.name, err)
	}
	return part{p.name, orNil(state), orNil(meta)}, changed, nil
}

// merge returns state and meta with patch merged into them, and whether a value
// is another one; now is the metadata of a leaf that changes. It changes none of its
// arguments.
func merge(state, meta, patch, now Object) (newState, newMeta Object, changed bool) {
	newState, newMeta = clone(state, len(patch)), clone(meta, len(patch))
	for key, want := range patch {
		have, exists := state[key]
		switch want := want.(type) {
		case nil:
			delete(newState, key)
			delete(newMeta, key)
			changed = changed || exists
		case Object:
			inner, _ := have.(Object)
			var innerMeta Object
			if len(inner) > 0 {
				// Without fields there is one leaf here, whose time is of no use to the fields
				// that come.
				innerMeta, _ = meta[key].(Object)
			}
			merged, mergedMeta, innerChanged := merge(inner, innerMeta, want, now)
			newState[key] = merged
			if _, wasObject := have.(Object); wasObject && !innerChanged {
				continue
			}
			if len(merged) == 0 {
				mergedMeta = now
			}
			newMeta[key] = mergedMeta
			changed = true
		default:
			if exists && equal(have, want) {
				continue
			}
			newState[key] = want
			newMeta[key] = now
			changed = true
		}
	}
	return newState, newMeta, changed
}

func clone(o Object, more int) Object {
	c := make(Object, len(o)+more)
	for key, value := range o {
		c[key] = value
	}
	return c
}

// checkLimits says whether a part is within the limits.
func checkLimits(state Object) error {
	if path := tooDeep(state, MaxDepth, nil); path != nil {
		return &DocumentError{Kind: ErrTooDeep, Path: pathString(path)}
	}
	if size := encodedSize(state); size > MaxBytes {
		return &DocumentError{Kind: ErrTooLarge, Detail: fmt.Sprintf("it would have %d bytes", size)}
	}
	return nil
}

// tooDeep returns the path to a value that is more than levels deep, or nil.
func tooDeep(v any, levels int, path []string) []string {
	switch v := v.(type) {
	case Object:
		if levels == 0 {
			return path
		}
		for key, value := range v {
			if found := tooDeep(value, levels-1, append(path, key)); found != nil {
				return found
			}
		}
	case []any:
		if levels == 0 {
			return path
		}
		for i, value := range v {
			if found := tooDeep(value, levels-1, append(path, indexStep(i))); found != nil {
				return found
			}
		}
	}
	return nil
}

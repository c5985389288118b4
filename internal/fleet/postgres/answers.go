package postgres

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"batchtask.dev/operator/internal/validation"
)

// The database is a tenant's. A trigger, a rule, a changed table or another program in
// its place can make it answer anything, in any order. So what it returns is looked at
// before it is used: an answer that the statement cannot have is an error for people,
// which ends no more than the call.

// contradictionError is an answer that cannot be. It is passing: whoever has changed the
// tables can change them back.
type contradictionError struct{ what string }

// Error says what cannot be and where to look for the cause.
func (e *contradictionError) Error() string {
	return "the database contradicts the statement: " + e.what +
		"; has somebody given a table of batchtask_* a trigger, a rule or other columns?"
}

func contradicts(format string, args ...any) error {
	return &contradictionError{fmt.Sprintf(format, args...)}
}

// shown is a text of the database as an error quotes it: its first characters.
func shown(text string) string {
	return fmt.Sprintf("%.64q", text)
}

// fields reads the values of a row in the binary format of the protocol. It holds what is
// wrong with the first that is not of its size, and returns 0 for all that follow.
type fields struct {
	values [][]byte
	err    error
}

// fieldsOf returns the n values of a row, for the time until the next row.
func fieldsOf(row pgx.CollectableRow, n int) fields {
	f := fields{values: row.RawValues()}
	if len(f.values) != n {
		f.err = contradicts("a row has %d columns, not %d", len(f.values), n)
	}
	return f
}

// zeros are read in the place of a value that cannot be.
var zeros [8]byte

func (f *fields) fixed(i, size int) []byte {
	if f.err == nil && len(f.values[i]) != size {
		f.err = contradicts("column %d of a row has %d bytes, not %d", i+1, len(f.values[i]), size)
	}
	if f.err != nil {
		return zeros[:size]
	}
	return f.values[i]
}

func (f *fields) int64(i int) int64 {
	return int64(binary.BigEndian.Uint64(f.fixed(i, 8))) //nolint:gosec // the protocol sends the bits of an int64
}

func (f *fields) int32(i int) int32 {
	return int32(binary.BigEndian.Uint32(f.fixed(i, 4))) //nolint:gosec // the protocol sends the bits of an int32
}

func (f *fields) int16(i int) int16 {
	return int16(binary.BigEndian.Uint16(f.fixed(i, 2))) //nolint:gosec // the protocol sends the bits of an int16
}

func (f *fields) uint32(i int) uint32 { return binary.BigEndian.Uint32(f.fixed(i, 4)) }

// tid returns where a row is.
func (f *fields) tid(i int) pgtype.TID {
	b := f.fixed(i, 6)
	return pgtype.TID{BlockNumber: binary.BigEndian.Uint32(b), OffsetNumber: binary.BigEndian.Uint16(b[4:]), Valid: true}
}

// text returns a text that is not NULL; its bytes are the same in both formats.
func (f *fields) text(i int) string {
	if f.err == nil && f.values[i] == nil {
		f.err = contradicts("column %d of a row is NULL", i+1)
	}
	if f.err != nil {
		return ""
	}
	return string(f.values[i])
}

// missing reports whether a value is NULL.
func (f *fields) missing(i int) bool { return f.err == nil && f.values[i] == nil }

// nextName returns the name that a row of a page of so many names has, in the memory of the
// one before it. Names become levels of MQTT topics, and the last one of a page is where
// the next page begins: without end, if they did not go up. until is an inclusive bound.
func nextName(row pgx.CollectableRow, before []byte, until string, at, most int) ([]byte, error) {
	f := fieldsOf(row, 1)
	if f.err != nil {
		return before, f.err
	}
	name := f.values[0]
	switch {
	case at > most:
		return before, contradicts("it returned more than the %d names that were asked for", most)
	case !validation.DeviceName(string(name)):
		return before, contradicts("%s is no name of a device", shown(string(name)))
	case bytes.Compare(name, before) <= 0:
		return before, contradicts("it returned device %s after %s, which is not their order", shown(string(name)), shown(string(before)))
	case string(name) > until:
		return before, contradicts("it returned device %s, which is after %s", shown(string(name)), shown(until))
	}
	return append(before[:0], name...), nil
}

// roll is the devices that a statement is for, in the order of their names, none twice.
// Rows find theirs in any order: the server has none that it must keep, unless the
// statement has an ORDER BY, and which it chooses depends on settings of the session.
type roll struct {
	devices []*device
	found   []bool
	next    int // the device that the next row is of, if rows come in the order of the names
	rows    int // that have found their device
}

func newRoll(devices []*device) *roll {
	return &roll{devices: devices, found: make([]bool, len(devices))}
}

// find returns the device that a row is of; nil where it is for none of them. The error
// is that of a second row.
func (r *roll) find(name string) (*device, error) {
	at := r.next
	if at == len(r.devices) || r.devices[at].name != name {
		low, high := 0, len(r.devices)
		for low < high {
			if middle := (low + high) / 2; r.devices[middle].name < name {
				low = middle + 1
			} else {
				high = middle
			}
		}
		if at = low; at == len(r.devices) || r.devices[at].name != name {
			return nil, nil //nolint:nilnil // no device, no fault
		}
	}
	if r.found[at] {
		return nil, contradicts("it returned two rows of device %s", shown(name))
	}
	r.found[at] = true
	r.rows++
	r.next = at + 1
	return r.devices[at], nil
}

// left returns the devices that no row was of, in the order of their names.
func (r *roll) left() []*device {
	if r.rows == len(r.devices) {
		return nil
	}
	left := make([]*device, 0, len(r.devices)-r.rows)
	for i, d := range r.devices {
		if !r.found[i] {
			left = append(left, d)
		}
	}
	return left
}

// some returns the rows of an answer that has no more than most.
func some[T any](rows pgx.Rows, most int, to pgx.RowToFunc[T]) (all []T, err error) {
	err = each(rows, func(row pgx.CollectableRow) error {
		if len(all) == most {
			return contradicts("it returned more than the %d rows that were asked for", most)
		}
		one, err := to(row)
		all = append(all, one)
		return err
	})
	return all, err
}

// maxText bounds a text of the results that is kept, in bytes: names, epochs, messages of
// failures. This program writes none of a kilobyte.
const maxText = 4 << 10

// texts checks texts of the results.
func texts(all ...string) error {
	for _, text := range all {
		if len(text) > maxText {
			return contradicts("it returned a text of %d bytes, %s; at most %d were stored", len(text), shown(text), maxText)
		}
	}
	return nil
}

// number checks a count.
func number(what string, n, most int64) error {
	if n < 0 || n > most {
		return contradicts("%s is %d, not 0 to %d", what, n, most)
	}
	return nil
}

// mostDevices bounds what may be counted of devices: JSON readers keep such a number.
const mostDevices = 1 << 53

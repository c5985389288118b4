package devicefile

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"time"
)

// Format is how devices are written in a file.
type Format string

// The formats.
const (
	// CSV is RFC 4180 in UTF-8 with a header, each device on one line.
	CSV Format = "csv"
	// NDJSON is one JSON object a line.
	NDJSON Format = "ndjson"
)

// LineError is a line that holds no device that can be imported. The lines after it
// can be read.
type LineError struct {
	// Line is its number, from 1.
	Line int64
	// Err says what is wrong with it.
	Err error
}

// Error says which line it is and what is wrong with it.
func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns what is wrong.
func (e *LineError) Unwrap() error { return e.Err }

// HeaderError is a file whose lines say nothing: CSV without a header that can be read,
// or no text in UTF-8.
type HeaderError struct {
	// Line is the number of the header, from 1; 0 where it is the file itself.
	Line int64
	// Err says what is wrong with it.
	Err error
}

// Error says what is wrong with the header or the file.
func (e *HeaderError) Error() string {
	if e.Line == 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("the header, line %d: %v", e.Line, e.Err)
}

// Unwrap returns what is wrong.
func (e *HeaderError) Unwrap() error { return e.Err }

// Reader reads devices from a file.
type Reader struct {
	lines     *lines
	format    Format
	documents *documents
	header    []string
	seed      maphash.Seed
	// seen has the first line of each name, by a hash: 16 bytes a device, for a million
	// of them. That two names of a million have one hash happens once in forty million
	// files, and not when the file is read again, with another seed.
	seen map[uint64]int64
}

// NewReader returns a Reader. White space before the first character does not count, and
// neither do blank lines anywhere. Format "" takes a file whose first character is "{" for
// NDJSON, and any other for CSV. now becomes the time of shadows, since files have none.
// The error is a [*HeaderError] or that of r.
func NewReader(r io.Reader, format Format, now time.Time) (*Reader, error) {
	reader := &Reader{lines: newLines(r), format: format, documents: newDocuments(now), seed: maphash.MakeSeed(), seen: map[uint64]int64{}}
	first, err := reader.lines.first()
	if err != nil {
		return nil, err
	}
	if format == "" {
		reader.format = CSV
		if first == '{' {
			reader.format = NDJSON
		}
	}
	if reader.format != CSV {
		return reader, nil
	}
	line, err := reader.lines.next()
	switch {
	case errors.Is(err, io.EOF):
		return nil, &HeaderError{Err: errors.New("the file is empty")}
	case first == '[' && format == "":
		return nil, &HeaderError{Err: errors.New("the file is a JSON array: write one object a line (jq -c '.[]' FILE)")}
	case errors.Is(err, errLongLine):
		return nil, &HeaderError{reader.Line(), err}
	case err != nil:
		return nil, err
	}
	if reader.header, err = header(string(line)); err != nil {
		return nil, &HeaderError{reader.Line(), err}
	}
	return reader, nil
}

// Line returns the number of the line that was read last, and Bytes how far in the
// file it ends.
func (r *Reader) Line() int64 { return r.lines.number }

// Bytes returns how much of the file has been read.
func (r *Reader) Bytes() int64 { return r.lines.bytes }

// Next returns the next device; blank lines are passed over. The error is a
// [*LineError], after which the next can be read, [io.EOF] at the end, or that of the
// file.
func (r *Reader) Next() (Device, error) {
	for {
		line, err := r.lines.next()
		switch {
		case errors.Is(err, errLongLine):
			return Device{}, &LineError{r.Line(), err}
		case err != nil:
			return Device{}, err
		}
		if line = bytes.TrimLeft(line, " \t\r"); len(line) == 0 {
			continue
		}
		device, err := r.parse(line)
		if err != nil {
			return Device{}, &LineError{r.Line(), err}
		}
		return device, nil
	}
}

func (r *Reader) parse(line []byte) (d Device, err error) {
	var rec record
	if r.format == CSV {
		rec, err = r.documents.parseCSV(r.header, string(line))
	} else {
		rec, err = r.documents.parseJSON(line)
	}
	if err == nil {
		d, err = rec.finish()
	}
	if err != nil {
		if CheckName(rec.device.Name) == nil {
			err = fmt.Errorf("device %q: %w", rec.device.Name, err)
		}
		return Device{}, err
	}
	hash := maphash.String(r.seed, d.Name)
	if before, twice := r.seen[hash]; twice {
		return Device{}, fmt.Errorf("device %q: it stands on line %d already", d.Name, before)
	}
	r.seen[hash] = r.Line()
	return d, nil
}

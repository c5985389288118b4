package devicefile

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
)

// Writer writes devices as [Reader] reads them.
type Writer struct {
	shadows bool
	csv     *csv.Writer   // nil for NDJSON
	json    *json.Encoder // nil for CSV
	fields  []string
}

// NewWriter returns a Writer, which writes the header of CSV at once, but not to w before
// it is flushed or has devices. With shadows the columns version, reported and desired are
// written. The caller buffers w.
func NewWriter(w io.Writer, format Format, shadows bool) (*Writer, error) {
	writer := &Writer{shadows: shadows}
	if format == NDJSON {
		writer.json = json.NewEncoder(w)
		writer.json.SetEscapeHTML(false)
		return writer, nil
	}
	writer.csv = csv.NewWriter(w)
	names := columns
	if !shadows {
		names = columns[:2]
	}
	return writer, writer.csv.Write(names)
}

// line is a device in NDJSON.
type line struct {
	Name     string          `json:"deviceName"`
	Disabled bool            `json:"disabled,omitempty"`
	Version  int64           `json:"version,omitempty"`
	Reported json.RawMessage `json:"reported,omitempty"`
	Desired  json.RawMessage `json:"desired,omitempty"`
}

// Write writes a device. An error is that of the io.Writer, or says which device has a
// stored document that is none: no import would take it.
func (w *Writer) Write(d Device) error {
	var reported, desired json.RawMessage
	if w.shadows {
		var err error
		if reported, err = oneLine(columnReported, d.Shadow.Reported); err == nil {
			desired, err = oneLine(columnDesired, d.Shadow.Desired)
		}
		if err != nil {
			return fmt.Errorf("device %q: %w", d.Name, err)
		}
	}
	if w.json != nil {
		l := line{Name: d.Name, Disabled: d.Disabled}
		if w.shadows {
			l.Version, l.Reported, l.Desired = d.Shadow.Version, reported, desired
		}
		return w.json.Encode(l)
	}
	w.fields = append(w.fields[:0], d.Name, strconv.FormatBool(d.Disabled))
	if w.shadows {
		version := ""
		if d.Shadow.Version > 0 {
			version = strconv.FormatInt(d.Shadow.Version, 10)
		}
		w.fields = append(w.fields, version, string(reported), string(desired))
	}
	return w.csv.Write(w.fields)
}

// Flush hands all that was written to the io.Writer.
func (w *Writer) Flush() error {
	if w.csv == nil {
		return nil
	}
	w.csv.Flush()
	return w.csv.Error()
}

// oneLine returns a document without white space; one that was written by hand may
// have line ends.
func oneLine(part, document string) (json.RawMessage, error) {
	if document == "" {
		return nil, nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(document)); err != nil {
		return nil, fmt.Errorf("the stored %s part is no JSON: %w", part, err)
	}
	return b.Bytes(), nil
}

package main

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
)

// rowsAligned is how many rows of a table are aligned with each other: the others are
// not there yet.
const rowsAligned = 1000

// rows writes a long list as a table, as CSV, as JSON objects each on a line, or the
// first column alone.
type rows struct {
	output string
	buffer *bufio.Writer
	table  *tabwriter.Writer
	csv    *csv.Writer
	json   *json.Encoder
	n      int   // that were written
	err    error // of the heading
}

// newRows takes the names of the columns of a table or CSV.
func newRows(w io.Writer, output string, columns ...string) *rows {
	r := &rows{output: output, buffer: bufio.NewWriterSize(w, 64<<10)}
	switch output {
	case outputTable:
		r.table = tabwriter.NewWriter(r.buffer, 0, 0, 3, ' ', 0)
		r.err = r.cells(columns)
	case outputCSV:
		r.csv = csv.NewWriter(r.buffer)
		r.err = r.csv.Write(columns)
	case outputJSON:
		r.json = json.NewEncoder(r.buffer)
		r.json.SetEscapeHTML(false)
	}
	return r
}

// write writes a row: its columns, or the object that it is in JSON.
func (r *rows) write(object any, columns ...string) error {
	if r.err != nil {
		return r.err
	}
	r.n++
	switch r.output {
	case outputTable:
		if r.n%rowsAligned == 0 {
			if err := r.table.Flush(); err != nil {
				return err
			}
		}
		return r.cells(columns)
	case outputCSV:
		return r.csv.Write(columns)
	case outputJSON:
		return r.json.Encode(object)
	default:
		_, err := r.buffer.WriteString(columns[0] + "\n")
		return err
	}
}

// cells writes a row of the table, without what a terminal would obey.
func (r *rows) cells(columns []string) error {
	clean := make([]string, len(columns))
	for i, text := range columns {
		clean[i] = strings.Map(func(c rune) rune {
			if unicode.IsControl(c) {
				return ' '
			}
			return c
		}, text)
	}
	_, err := io.WriteString(r.table, strings.TrimRight(strings.Join(clean, "\t"), "\t ")+"\n")
	return err
}

// finish ends a list that came to its end, or to an error. Of one that failed before its
// first row nothing is written: a heading alone would look like an empty list, whoever has
// sent it to a file.
func (r *rows) finish(err error) error {
	switch {
	case err == nil:
		return r.flush()
	case r.n == 0:
		return err
	default:
		return errors.Join(fmt.Errorf("ended early, after %d rows: %w", r.n, err), r.flush())
	}
}

func (r *rows) flush() error {
	var err error
	switch {
	case r.table != nil:
		err = r.table.Flush()
	case r.csv != nil:
		r.csv.Flush()
		err = r.csv.Error()
	}
	return errors.Join(r.err, err, r.buffer.Flush())
}

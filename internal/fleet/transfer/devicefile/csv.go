package devicefile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

var (
	errBareQuote  = errors.New(`a quote (") stands in a field that does not begin with one; write "a ""quoted"" field"`)
	errOpenQuote  = errors.New("a quoted field does not end on its line; a device is one line, so write JSON without line ends")
	errAfterQuote = errors.New(`after the closing quote (") of a field comes neither a comma nor the end of the line`)
	errUTF8       = errors.New("it is not UTF-8")
)

// splitCSV returns the fields of one line of CSV (RFC 4180). A field may not hold a
// line end: whoever counts lines then finds the one that is meant, and one quote that
// is missing spoils its own line, not the rest of the file.
func splitCSV(line string) (fields []string, err error) {
	for {
		field, rest, more, err := nextField(line)
		if err != nil {
			return nil, err
		}
		fields = append(fields, field)
		if !more {
			return fields, nil
		}
		line = rest
	}
}

// nextField cuts the first field off; more says that a comma follows it.
func nextField(line string) (field, rest string, more bool, err error) {
	quoted, ok := strings.CutPrefix(line, `"`)
	if !ok {
		field, rest, more = strings.Cut(line, ",")
		if strings.Contains(field, `"`) {
			return "", "", false, errBareQuote
		}
		return field, rest, more, nil
	}
	var b strings.Builder
	for {
		part, after, closed := strings.Cut(quoted, `"`)
		if !closed {
			return "", "", false, errOpenQuote
		}
		b.WriteString(part)
		quoted, ok = strings.CutPrefix(after, `"`)
		if !ok {
			break
		}
		b.WriteByte('"')
	}
	if quoted == "" {
		return b.String(), "", false, nil
	}
	if rest, more = strings.CutPrefix(quoted, ","); !more {
		return "", "", false, errAfterQuote
	}
	return b.String(), rest, true, nil
}

// header reads the names of the columns.
func header(line string) ([]string, error) {
	names, err := splitCSV(line)
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		switch {
		case !slices.Contains(columns, name):
			return nil, fmt.Errorf("column %d, %q, is none of %s", i+1, shorten(name), strings.Join(columns, ", "))
		case slices.Contains(names[:i], name):
			return nil, fmt.Errorf("column %q stands there twice", name)
		}
	}
	if !slices.Contains(names, columnName) {
		return nil, fmt.Errorf("there is no column %s; a file begins with a line such as %q", columnName, strings.Join(columns[:2], ","))
	}
	return names, nil
}

// parseCSV reads a line with the columns of the header.
func (d *documents) parseCSV(header []string, line string) (r record, err error) {
	r.documents = d
	if !utf8.ValidString(line) {
		return r, errUTF8
	}
	fields, err := splitCSV(line)
	if err != nil {
		return r, err
	}
	if len(fields) != len(header) {
		return r, fmt.Errorf("it has %d fields, and the header has %d; quote fields that hold a comma", len(fields), len(header))
	}
	for i, field := range fields {
		if err := r.set(header[i], field); err != nil {
			return r, err
		}
	}
	return r, nil
}

// shorten cuts what is quoted in an error, on a character.
func shorten(text string) string {
	const most = 64
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

package devicefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// kinds says of what kind the value of each key is, by how JSON begins it.
var kinds = map[string]struct{ begins, what string }{
	columnName:     {`"`, "a string"},
	columnDisabled: {"tf", "true or false"},
	columnVersion:  {"-0123456789", "a number"},
	columnReported: {"{", "an object"},
	columnDesired:  {"{", "an object"},
}

// parseJSON reads a line that is one JSON object.
func (d *documents) parseJSON(line []byte) (r record, err error) {
	r.documents = d
	if !utf8.Valid(line) {
		return r, errUTF8
	}
	// The decoder below is laxer than the grammar.
	if err := json.Unmarshal(line, new(json.RawMessage)); err != nil {
		return r, fmt.Errorf("it is no JSON: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return r, errors.New("it is no JSON object")
	}
	var seen []string
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return r, err
		}
		key, _ := token.(string)
		switch {
		case !slices.Contains(columns, key):
			return r, fmt.Errorf("the key %q is none of %s", shorten(key), strings.Join(columns, ", "))
		case slices.Contains(seen, key):
			return r, fmt.Errorf("the key %q stands there twice", key)
		}
		seen = append(seen, key)
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return r, err
		}
		if err := r.setJSON(key, value); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *record) setJSON(key string, value json.RawMessage) error {
	kind := kinds[key]
	if !strings.ContainsRune(kind.begins, rune(value[0])) {
		return fmt.Errorf("%s: it is not %s", key, kind.what)
	}
	text := string(value)
	if key == columnName {
		if err := json.Unmarshal(value, &text); err != nil {
			return err
		}
	}
	return r.set(key, text)
}

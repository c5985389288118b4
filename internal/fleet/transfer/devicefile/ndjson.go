package devicefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"
)

// kinds says of what kind the value of each key is, by how JSON begins it. All but the name
// may be null, which many programs write for what is absent, and which means that.
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
	// What is read below is known to follow the grammar.
	if !json.Valid(line) {
		return r, fmt.Errorf("it is no JSON: %w", json.Unmarshal(line, new(json.RawMessage)))
	}
	if line = bytes.TrimSpace(line); line[0] != '{' {
		return r, errors.New("it is no JSON object")
	}
	seen := make([]string, 0, len(columns))
	for literal, value := range members(line) {
		key, err := unquote(literal)
		switch {
		case err != nil:
			return r, err
		case !slices.Contains(columns, key):
			return r, fmt.Errorf("the key %q is none of %s", shorten(key), strings.Join(columns, ", "))
		case slices.Contains(seen, key):
			return r, fmt.Errorf("the key %q stands there twice", key)
		}
		seen = append(seen, key)
		if err := r.setJSON(key, value); err != nil {
			return r, err
		}
	}
	return r, nil
}

// members returns the keys of a JSON object, as the string literals that they are, and their
// values, in the order in which they stand there. The object must follow the grammar.
func members(object []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		rest := object[1:]
		next := func() []byte {
			rest = bytes.TrimLeft(rest, " \t\r\n,:")
			value := rest[:valueEnd(rest)]
			rest = rest[len(value):]
			return value
		}
		for {
			key := next()
			if len(key) == 0 || !yield(key, next()) {
				return
			}
		}
	}
}

// valueEnd returns how long the JSON value is that text begins with; 0 where an object ends
// in its place.
func valueEnd(text []byte) int {
	switch text[0] {
	case '"':
		return stringEnd(text)
	case '{', '[':
		depth := 0
		for at := 0; ; at++ {
			switch text[at] {
			case '"':
				at += stringEnd(text[at:]) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return at + 1
				}
			}
		}
	default: // a number, true, false or null
		return bytes.IndexAny(text, " \t\r\n,}")
	}
}

// stringEnd returns how long the string literal is that text begins with.
func stringEnd(text []byte) int {
	at := 1
	for ; text[at] != '"'; at++ {
		if text[at] == '\\' {
			at++
		}
	}
	return at + 1
}

// unquote returns the text of a string literal.
func unquote(literal []byte) (text string, err error) {
	if bytes.IndexByte(literal, '\\') < 0 {
		return string(literal[1 : len(literal)-1]), nil
	}
	err = json.Unmarshal(literal, &text)
	return text, err
}

func (r *record) setJSON(key string, value []byte) (err error) {
	if key != columnName && string(value) == "null" {
		return nil
	}
	kind := kinds[key]
	if !strings.ContainsRune(kind.begins, rune(value[0])) {
		return fmt.Errorf("%s: it is not %s", key, kind.what)
	}
	text := string(value)
	if key == columnName {
		if text, err = unquote(value); err != nil {
			return err
		}
	}
	return r.set(key, text)
}

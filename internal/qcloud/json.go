package qcloud

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// maxDepth is how deep JSON may be nested. The deepest that an action takes is
	// three levels.
	maxDepth = 32
	// maxNodes is how many values a JSON text may hold, objects and arrays counted with
	// what is in them. The most that an action takes is about ten; each costs some hundred
	// bytes of memory, however short it is.
	maxNodes = 1024
)

// parseObject reads exactly one JSON object. encoding/json alone would let pass
// what makes two readers understand two things: of a key that stands twice it
// takes the last, it takes keys in any case, and it replaces what is not Unicode.
// Numbers are returned as json.Number.
func parseObject(text []byte) (map[string]any, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("must be UTF-8")
	}
	// The decoder below goes token by token and is laxer than the grammar, so the
	// grammar comes first.
	if err := json.Unmarshal(text, new(json.RawMessage)); err != nil {
		return nil, fmt.Errorf("must be a JSON object: %w", err)
	}
	if halfSurrogate(text) {
		return nil, errors.New("a string holds half of a surrogate pair")
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	nodes := maxNodes
	value, err := parseValue(decoder, 1, &nodes)
	if err != nil {
		return nil, err
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("must be a JSON object, it is %s", typeName(value))
	}
	return object, nil
}

// parseValue reads the next value; level counts the objects and arrays around it,
// and itself; nodes is how many more values there may be.
func parseValue(decoder *json.Decoder, level int, nodes *int) (any, error) {
	if *nodes--; *nodes < 0 {
		return nil, fmt.Errorf("must have at most %d values", maxNodes)
	}
	token, err := decoder.Token()
	if err != nil {
		return nil, fmt.Errorf("must be a JSON object: %w", err)
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	if level > maxDepth {
		return nil, fmt.Errorf("must be at most %d levels deep", maxDepth)
	}
	object, array := map[string]any{}, []any{}
	for decoder.More() {
		if delim == '[' {
			value, err := parseValue(decoder, level+1, nodes)
			if err != nil {
				return nil, err
			}
			array = append(array, value)
			continue
		}
		token, err := decoder.Token()
		if err != nil {
			return nil, fmt.Errorf("must be a JSON object: %w", err)
		}
		key, _ := token.(string)
		if _, exists := object[key]; exists {
			return nil, fmt.Errorf("the key %q stands twice in one object", key)
		}
		if object[key], err = parseValue(decoder, level+1, nodes); err != nil {
			return nil, err
		}
	}
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("must be a JSON object: %w", err)
	}
	if delim == '[' {
		return array, nil
	}
	return object, nil
}

// halfSurrogate reports whether a valid JSON text has the escape of a surrogate
// that belongs to no pair: text can hold no such thing, and a payload that was
// altered is worse than one that is refused.
func halfSurrogate(text []byte) bool {
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		i++ // the grammar says that something follows
		if text[i] != 'u' {
			continue
		}
		first := escaped(text[i+1:])
		i += 4
		if !utf16.IsSurrogate(first) {
			continue
		}
		rest, ok := bytes.CutPrefix(text[i+1:], []byte(`\u`))
		if !ok || utf16.DecodeRune(first, escaped(rest)) == utf8.RuneError {
			return true
		}
		i += 6
	}
	return false
}

// escaped returns the number of the four hexadecimal digits that text begins with.
func escaped(text []byte) rune {
	n, err := strconv.ParseUint(string(text[:4]), 16, 16)
	if err != nil {
		return utf8.RuneError
	}
	return rune(n)
}

// typeName names the type of a value for people.
func typeName(value any) string {
	switch value.(type) {
	case nil:
		return "null"
	case bool:
		return "true or false"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case []any:
		return "an array"
	default:
		return "an object"
	}
}

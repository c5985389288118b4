package shadow

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
)

// buffers are what documents are written into before their size is known.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// encoded hands what write appends to an empty buffer to use, which must not keep it.
func encoded(write func([]byte) []byte, use func([]byte)) {
	buffer, _ := buffers.Get().(*[]byte)
	*buffer = write((*buffer)[:0])
	use(*buffer)
	buffers.Put(buffer)
}

// encodeObject writes an object as [encode] does, without reflection, which was most of
// the work of an import of devices. The values are those that an [Object] may have.
func encodeObject(o Object) (text string) {
	encoded(func(b []byte) []byte { return appendObject(b, o) }, func(b []byte) { text = string(b) })
	return text
}

// encodedSize returns how many bytes [encodeObject] writes.
func encodedSize(o Object) (size int) {
	encoded(func(b []byte) []byte { return appendObject(b, o) }, func(b []byte) { size = len(b) })
	return size
}

// encodeMetadata writes metadata as [encode] does, the reported part first.
func encodeMetadata(m Metadata) (text string) {
	encoded(func(b []byte) []byte { return appendMetadata(b, m) }, func(b []byte) { text = string(b) })
	return text
}

// appendObject appends an object with its keys in order.
func appendObject(b []byte, o Object) []byte {
	keys := make([]string, 0, 16) // on the stack, for most objects
	for key := range o {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	b = append(b, '{')
	for i, key := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, key), ':')
		b = appendValue(b, o[key])
	}
	return append(b, '}')
}

func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, "null"...)
	case bool:
		return strconv.AppendBool(b, v)
	case string:
		return appendString(b, v)
	case json.Number:
		return append(b, v...)
	case Object:
		return appendObject(b, v)
	case []any:
		b = append(b, '[')
		for i, element := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendValue(b, element)
		}
		return append(b, ']')
	default:
		panic(fmt.Sprintf("shadow: document with a %T", v))
	}
}

// appendString appends a string as JSON. What needs an escape, or may need one, is left to
// encoding/json.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return append(b, encode(s)...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func appendMetadata(b []byte, m Metadata) []byte {
	b = append(b, '{')
	if len(m.Reported) > 0 {
		b = appendObject(append(b, `"reported":`...), m.Reported)
	}
	if len(m.Desired) > 0 {
		if len(m.Reported) > 0 {
			b = append(b, ',')
		}
		b = appendObject(append(b, `"desired":`...), m.Desired)
	}
	return append(b, '}')
}

// encode writes v as JSON without white space, with sorted keys and without the
// escapes for HTML, which would make a document larger than what was written.
func encode(v any) []byte {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		// A document holds only what the parser made, and all of that has a JSON form.
		panic(fmt.Sprintf("shadow: document that is no JSON: %v", err))
	}
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n"))
}

package shadow

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// What can be wrong with a document. Errors of this package are [*DocumentError]
// and match one of these with errors.Is.
var (
	// ErrNotJSON : the text is not one JSON value in UTF-8.
	ErrNotJSON = errors.New("not a JSON value")
	// ErrNotObject : the value is JSON and not an object.
	ErrNotObject = errors.New("not a JSON object")
	// ErrIllegalKey : a key is empty, or stands twice in one object.
	ErrIllegalKey = errors.New("illegal key")
	// ErrIllegalNode : a value cannot stand where it does.
	ErrIllegalNode = errors.New("illegal value")
	// ErrTooDeep : there are more than MaxDepth levels.
	ErrTooDeep = fmt.Errorf("more than %d levels deep", MaxDepth)
	// ErrTooLarge : there are more than MaxBytes bytes.
	ErrTooLarge = fmt.Errorf("larger than %d bytes", MaxBytes)
)

// DocumentError says what is wrong with a document, and where.
type DocumentError struct {
	// Kind is one of the errors of this package; errors.Is finds it.
	Kind error
	// Path leads to the value, as in "a.b[2]"; empty for the whole document and
	// where it is not known.
	Path string
	// Offset is how many bytes of the text had been read; 0 where there is no text.
	Offset int64
	// Detail says more, for people; it may be empty.
	Detail string
}

// Error returns a sentence for people.
func (e *DocumentError) Error() string {
	var b strings.Builder
	b.WriteString(e.Kind.Error())
	if e.Path != "" {
		fmt.Fprintf(&b, " at %s", e.Path)
	}
	if e.Offset > 0 {
		fmt.Fprintf(&b, " (byte %d)", e.Offset)
	}
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	return b.String()
}

// Unwrap returns the kind.
func (e *DocumentError) Unwrap() error { return e.Kind }

// limits are what parseObject enforces.
type limits struct{ depth, bytes int }

var unlimited = limits{depth: math.MaxInt, bytes: math.MaxInt}

// ParseDesired reads what is to be merged into the desired part of shadows
// (CreateTask, tasks.updateShadowTask.desired): exactly one JSON object in UTF-8,
// at most [MaxBytes] bytes and [MaxDepth] levels, in which no key is empty or
// stands twice in one object. Numbers keep their digits. Errors are of type
// [*DocumentError].
func ParseDesired(text string) (Object, error) {
	object, _, err := parseDesired(text)
	return object, err
}

// CanonicalPart returns the reported or the desired part of a shadow in the form in
// which [Document.Stored] has it, "" for one without fields. Text is held to the rules
// of [ParseDesired].
func CanonicalPart(text string) (string, error) {
	object, stored, err := parseDesired(text)
	if err != nil || len(object) == 0 {
		return "", err
	}
	return stored, nil
}

// parseDesired also returns the text as it would be stored.
func parseDesired(text string) (object Object, stored string, err error) {
	p := parser{text: text, limits: limits{depth: MaxDepth, bytes: MaxBytes}}
	object, err = p.parse()
	if err != nil || p.canonical {
		return object, text, err
	}
	// The stored form escapes U+2028 and U+2029 and so can be longer than the text.
	// A patch that fits no shadow is better refused here than by every device.
	stored = encodeObject(object)
	if size := len(stored); size > MaxBytes {
		return nil, "", &DocumentError{Kind: ErrTooLarge, Detail: fmt.Sprintf("it would be stored with %d bytes", size)}
	}
	return object, stored, nil
}

// CanonicalMetadata returns the metadata of a shadow in the form in which
// [Document.Stored] has them. Errors are those of [Parse].
func CanonicalMetadata(text string) (string, error) {
	p := parser{text: text, limits: unlimited, metadata: true}
	if object, err := p.parse(); err == nil && p.canonical && isMetadata(object) {
		return text, nil
	}
	doc, err := Parse(Stored{Metadata: text})
	if err != nil {
		return "", err
	}
	return doc.Stored().Metadata, nil
}

// isMetadata reports whether there is metadata of some part, and nothing else.
func isMetadata(object Object) bool {
	for name, part := range object {
		if part, _ := part.(Object); len(part) == 0 || name != reportedPart && name != desiredPart {
			return false
		}
	}
	return len(object) > 0
}

func parseObject(text string, limits limits) (Object, error) {
	p := parser{text: text, limits: limits}
	return p.parse()
}

// parser reads a text that is one JSON object.
type parser struct {
	text   string
	limits limits
	// metadata says that the text is that of a shadow: it is stored with the reported part
	// first, though keys are sorted elsewhere.
	metadata bool
	// canonical says that what was read is as encode would write it. It may be false where
	// that is so.
	canonical bool
	at        int // how many bytes were read
	path      []string
}

// parse reads the text.
func (p *parser) parse() (Object, error) {
	text, limits := p.text, p.limits
	if len(text) > limits.bytes {
		return nil, &DocumentError{Kind: ErrTooLarge, Detail: fmt.Sprintf("it has %d bytes", len(text))}
	}
	if !utf8.ValidString(text) {
		// encoding/json would put U+FFFD in the place of what it cannot read.
		return nil, &DocumentError{Kind: ErrNotJSON, Offset: invalidUTF8(text), Detail: "invalid UTF-8"}
	}
	// What follows here knows that the text follows the grammar, so that comes first.
	// This also finds what follows the value.
	if !json.Valid([]byte(text)) {
		e := &DocumentError{Kind: ErrNotJSON}
		if err := json.Unmarshal([]byte(text), new(json.RawMessage)); err != nil {
			e.Detail = err.Error()
			if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
				e.Offset = syntax.Offset
			}
		}
		return nil, e
	}
	p.canonical = true
	value, err := p.value(1)
	if err != nil {
		return nil, err
	}
	object, ok := value.(Object)
	if !ok {
		return nil, &DocumentError{Kind: ErrNotObject, Detail: "it is " + kindOf(value)}
	}
	p.canonical = p.canonical && p.at == len(text)
	return object, nil
}

// next returns the first byte of the next token, without taking it. Which separators
// stand before it the grammar says.
func (p *parser) next() byte {
	for ; ; p.at++ {
		switch c := p.text[p.at]; c {
		case ',', ':':
		case ' ', '\t', '\r', '\n':
			p.canonical = false
		default:
			return c
		}
	}
}

// value reads the next value, which is at the given level if it is an object or
// an array.
func (p *parser) value(level int) (any, error) {
	switch c := p.next(); c {
	case '{', '[':
		p.at++
		if level > p.limits.depth {
			return nil, p.fault(ErrTooDeep, "")
		}
		if c == '[' {
			return p.array(level)
		}
		return p.object(level)
	case '"':
		return p.string()
	case 't':
		p.at += len("true")
		return true, nil
	case 'f':
		p.at += len("false")
		return false, nil
	case 'n':
		p.at += len("null")
		return nil, nil
	default:
		start := p.at
		for p.at < len(p.text) && strings.IndexByte(",]} \t\r\n", p.text[p.at]) < 0 {
			p.at++
		}
		return json.Number(p.text[start:p.at]), nil
	}
}

func (p *parser) object(level int) (any, error) {
	object := Object{}
	last := ""
	for p.next() != '}' {
		key, err := p.string()
		if err != nil {
			return nil, err
		}
		if key == "" {
			return nil, p.fault(ErrIllegalKey, "a key is empty")
		}
		p.path = append(p.path, key)
		if _, exists := object[key]; exists {
			return nil, p.fault(ErrIllegalKey, "the key stands twice in one object")
		}
		p.canonical = p.canonical && (last < key) != (p.metadata && level == 1 && last != "")
		last = key
		if object[key], err = p.value(level + 1); err != nil {
			return nil, err
		}
		p.path = p.path[:len(p.path)-1]
	}
	p.at++
	return object, nil
}

func (p *parser) array(level int) (any, error) {
	array := []any{}
	for p.next() != ']' {
		p.path = append(p.path, indexStep(len(array)))
		value, err := p.value(level + 1)
		if err != nil {
			return nil, err
		}
		array = append(array, value)
		p.path = p.path[:len(p.path)-1]
	}
	p.at++
	return array, nil
}

// string reads a string. It refuses one with half a surrogate pair, which JSON can
// write and Unicode text cannot hold.
func (p *parser) string() (s string, err error) {
	start, escapes := p.at, false
	for p.at++; p.text[p.at] != '"'; p.at++ {
		if p.text[p.at] == '\\' {
			escapes = true
			p.at++
		}
	}
	p.at++
	literal := p.text[start:p.at]
	if !escapes {
		s = literal[1 : len(literal)-1]
		// U+2028 and U+2029, which encode escapes, begin with this byte.
		p.canonical = p.canonical && strings.IndexByte(s, 0xE2) < 0
		return s, nil
	}
	p.canonical = false
	if err := json.Unmarshal([]byte(literal), &s); err != nil {
		return "", p.fault(ErrNotJSON, err.Error())
	}
	if strings.ContainsRune(s, utf8.RuneError) && halfSurrogate(literal) {
		return "", p.fault(ErrNotJSON, "a string holds half of a surrogate pair")
	}
	return s, nil
}

func (p *parser) fault(kind error, detail string) error {
	return &DocumentError{Kind: kind, Path: pathString(p.path), Offset: int64(p.at), Detail: detail}
}

// halfSurrogate reports whether a JSON string literal has an escape of a
// surrogate that does not belong to a pair.
func halfSurrogate(literal string) bool {
	for i := 0; i < len(literal); i++ {
		if literal[i] != '\\' {
			continue
		}
		i++
		if literal[i] != 'u' {
			continue
		}
		first := escaped(literal[i+1:])
		i += 4
		if !utf16.IsSurrogate(first) {
			continue
		}
		rest, ok := strings.CutPrefix(literal[i+1:], `\u`)
		if !ok || utf16.DecodeRune(first, escaped(rest)) == utf8.RuneError {
			return true
		}
		i += 6
	}
	return false
}

// escaped returns the number of the four hexadecimal digits that s begins with.
func escaped(s string) rune {
	n, err := strconv.ParseUint(s[:4], 16, 16)
	if err != nil {
		return utf8.RuneError
	}
	return rune(n)
}

// invalidUTF8 returns how many bytes of s can be read as UTF-8, plus one.
func invalidUTF8(s string) int64 {
	for i, r := range s {
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD") {
			return int64(i) + 1
		}
	}
	return 0
}

// kindOf names the kind of a JSON value.
func kindOf(value any) string {
	switch value.(type) {
	case nil:
		return "null"
	case bool:
		return "true or false"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case Object:
		return "an object"
	default:
		return "an array"
	}
}

func indexStep(i int) string { return "[" + strconv.Itoa(i) + "]" }

// pathString joins the steps of a path. Keys may be as long as the document, so
// it keeps the end of a long path, which says most.
func pathString(path []string) string {
	var b strings.Builder
	for i, step := range path {
		if i > 0 && !strings.HasPrefix(step, "[") {
			b.WriteByte('.')
		}
		b.WriteString(step)
	}
	const most = 120
	runes := []rune(b.String())
	if len(runes) > most {
		return "…" + string(runes[len(runes)-most:])
	}
	return string(runes)
}

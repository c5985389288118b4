package shadow

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

const (
	// maxAddresseeBytes is how many bytes of a message that is too large are looked
	// through for its type and token: 512 KiB, under a millisecond.
	maxAddresseeBytes = 512 << 10
	// maxTokenBytes is how long the token of such a message may be; the answer repeats it.
	maxTokenBytes = 1 << 10
)

// Addressee reads of a message what an answer needs that says no more than a result:
// the type and the token, as far as they can be read. It costs little, whatever the
// message is.
func Addressee(payload []byte) Message {
	if len(payload) > MaxMessageBytes {
		return addresseeOfLarge(payload)
	}
	return addressee(string(payload))
}

// addressee reads the type and the token of a message that may be wrong in other
// ways, so that the device can tell which message an error is for. Of a member that
// stands twice it takes the last.
func addressee(text string) Message {
	var m Message
	var envelope map[string]json.RawMessage
	if !utf8.ValidString(text) || json.Unmarshal([]byte(text), &envelope) != nil {
		return m
	}
	m.setType(envelope["type"])
	m.setToken(envelope["clientToken"])
	return m
}

func (m *Message) setType(literal json.RawMessage) {
	var kind string
	if json.Unmarshal(literal, &kind) == nil && (kind == TypeGet || kind == TypeUpdate) {
		m.Type = kind
	}
}

func (m *Message) setToken(literal json.RawMessage) {
	if len(literal) == 0 {
		return
	}
	switch c := literal[0]; {
	case c == '"', c == '-', '0' <= c && c <= '9':
		m.ClientToken = literal
	}
}

// addresseeOfLarge is addressee for a message that is refused for its size. It goes
// through the members of the outermost object, keeps nothing of their values, and ends
// where the text is no JSON: that is then no matter any more.
func addresseeOfLarge(payload []byte) Message {
	var m Message
	s := scanner{text: string(payload[:min(len(payload), maxAddresseeBytes)])}
	if !s.take('{') {
		return m
	}
	for {
		key, ok := s.string()
		if !ok || !s.take(':') {
			return m
		}
		value, ok := s.value()
		if !ok {
			return m
		}
		switch {
		case len(value) > maxTokenBytes || !utf8.ValidString(value) || !json.Valid([]byte(value)):
		case key == `"type"`:
			m.setType(json.RawMessage(value))
		case key == `"clientToken"`:
			m.setToken(json.RawMessage(value))
		}
		if !s.take(',') {
			return m
		}
	}
}

// scanner finds where values of JSON end, without looking at what they are.
type scanner struct {
	text string
	at   int
}

// take skips white space and then c, and says whether it was there.
func (s *scanner) take(c byte) bool {
	s.space()
	if s.at == len(s.text) || s.text[s.at] != c {
		return false
	}
	s.at++
	return true
}

func (s *scanner) space() {
	for s.at < len(s.text) && strings.IndexByte(" \t\r\n", s.text[s.at]) >= 0 {
		s.at++
	}
}

// string returns the next value, quotes included, if it is a string.
func (s *scanner) string() (string, bool) {
	s.space()
	start := s.at
	if s.at == len(s.text) || s.text[s.at] != '"' {
		return "", false
	}
	for s.at++; ; s.at += 2 {
		i := strings.IndexAny(s.text[s.at:], `"\`)
		if i < 0 || s.text[s.at+i] == '\\' && s.at+i+1 == len(s.text) {
			return "", false
		}
		s.at += i
		if s.text[s.at] == '"' {
			s.at++
			return s.text[start:s.at], true
		}
	}
}

// value returns the next value, if the text holds the whole of it.
func (s *scanner) value() (string, bool) {
	s.space()
	start := s.at
	for depth := 0; s.at < len(s.text); {
		switch c := s.text[s.at]; c {
		case '"':
			if _, ok := s.string(); !ok {
				return "", false
			}
			if depth == 0 {
				return s.text[start:s.at], true
			}
			continue
		case '{', '[':
			depth++
		case '}', ']', ',':
			if depth == 0 {
				return s.text[start:s.at], s.at > start
			}
			if c != ',' {
				depth--
			}
			if depth == 0 {
				s.at++
				return s.text[start:s.at], true
			}
		case ' ', '\t', '\r', '\n':
			if depth == 0 {
				return s.text[start:s.at], true
			}
		}
		s.at++
	}
	return "", false
}

package shadow

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Types of messages that devices send.
const (
	TypeGet    = "get"
	TypeUpdate = "update"
)

// MaxMessageBytes is how many bytes a message of a device may have, white space
// included: 32 KiB, which is a full reported part with as much again around it.
const MaxMessageBytes = 2 * MaxBytes

// messageLevels is how many levels of a message are around the reported part: the
// message itself and "state".
const messageLevels = 2

// ErrMessage : the text is JSON, and not a message that a device may send.
var ErrMessage = errors.New("not a shadow message")

// Message is what a device sends:
//
//	{"type":"get","clientToken":"t"}
//	{"type":"update","state":{"reported":{…},"desired":null},"version":n,"clientToken":"t"}
type Message struct {
	// Type is TypeGet or TypeUpdate; "" where the message has no such type.
	Type string
	// ClientToken is the device's clientToken, a string or a number, exactly as it was
	// written; nil where there is none.
	ClientToken json.RawMessage
	// Update is the change that a message of TypeUpdate asks for.
	Update Update
}

// ParseMessage reads a message of a device. Along with an error it returns what
// the answer needs, as far as it can be read: the type and the token. Errors are of
// type [*DocumentError].
//
// The whole message is held to the rules of [ParseDesired]: UTF-8, no key empty or
// twice in one object; at most [MaxMessageBytes], and at most [MaxDepth] levels below
// "reported". Members that no rule knows are ignored. A device may clear the desired
// part and not write to it, so "desired" is null or absent.
func ParseMessage(payload []byte) (Message, error) {
	if len(payload) > MaxMessageBytes {
		return addresseeOfLarge(payload), &DocumentError{Kind: ErrTooLarge, Detail: fmt.Sprintf("the message has %d bytes", len(payload))}
	}
	text := string(payload)
	m := addressee(text)
	message, err := parseObject(text, limits{depth: MaxDepth + messageLevels, bytes: MaxMessageBytes})
	if err != nil {
		return m, err
	}
	if token, ok := message["clientToken"]; ok && m.ClientToken == nil {
		return m, wrong("clientToken", "it is "+kindOf(token)+", not a string or a number")
	}
	switch m.Type {
	case TypeGet:
		return m, nil
	case TypeUpdate:
		m.Update, err = parseUpdate(message)
		return m, err
	default:
		return m, wrong("type", `it is neither "get" nor "update"`)
	}
}

func parseUpdate(message Object) (Update, error) {
	var u Update
	if version, ok := message["version"]; ok {
		number, _ := version.(json.Number)
		n, err := strconv.ParseInt(string(number), 10, 64)
		if err != nil || n < 0 {
			return Update{}, wrong("version", "it is not a whole number from 0")
		}
		u.Version = n
	}
	state, ok := message["state"].(Object)
	if !ok {
		return Update{}, wrong("state", "it is no object")
	}
	reported, hasReported := state[reportedPart]
	desired, hasDesired := state[desiredPart]
	if !hasReported && !hasDesired {
		return Update{}, &DocumentError{Kind: ErrIllegalNode, Path: "state", Detail: "it has neither reported nor desired"}
	}
	if hasDesired && desired != nil {
		return Update{}, &DocumentError{Kind: ErrIllegalNode, Path: "state.desired", Detail: "a device may set it to null only"}
	}
	u.ClearDesired = hasDesired
	if hasReported {
		if u.Reported, ok = reported.(Object); !ok {
			return Update{}, &DocumentError{Kind: ErrIllegalNode, Path: "state.reported", Detail: "it is " + kindOf(reported) + ", not an object"}
		}
	}
	return u, nil
}

func wrong(path, detail string) error {
	return &DocumentError{Kind: ErrMessage, Path: path, Detail: detail}
}

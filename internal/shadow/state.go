package shadow

import "errors"

// ErrIncomplete : a member that must be there is not.
var ErrIncomplete = errors.New("incomplete")

// ParseState reads a change that an application asks for (UpdateDeviceShadow, state):
// {"desired":{…}}, or {"desired":null} to clear the desired part. It is held to the
// rules of [ParseMessage]; errors are of type [*DocumentError], and match
// [ErrIncomplete] where there is no "desired". What a device reports no application
// can write.
func ParseState(text string) (Update, error) {
	state, err := parseObject(text, limits{depth: MaxDepth + 1, bytes: MaxMessageBytes})
	if err != nil {
		return Update{}, err
	}
	for member := range state {
		if member != desiredPart {
			return Update{}, &DocumentError{Kind: ErrIllegalNode, Path: pathString([]string{member}), Detail: `only "desired" can be set`}
		}
	}
	desired, exists := state[desiredPart]
	switch value := desired.(type) {
	case Object:
		return Update{Desired: value}, nil
	case nil:
		if !exists {
			return Update{}, &DocumentError{Kind: ErrIncomplete, Detail: `it has no "desired"`}
		}
		return Update{ClearDesired: true}, nil
	default:
		return Update{}, &DocumentError{Kind: ErrIllegalNode, Path: desiredPart, Detail: "it is " + kindOf(desired) + ", not an object or null"}
	}
}

// Package devicefile holds files of devices: CSV with a header, or one JSON object a
// line. It does no I/O but through the reader and the writer that it is given, and
// holds one line of them: files may be larger than the memory.
package devicefile

import (
	"errors"

	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/validation"
)

// Device is a device with its shadow.
type Device struct {
	// Name is the name of the device: 1 to 48 letters, digits, ':', '_' and '-'.
	Name string
	// Disabled takes the device out of every task.
	Disabled bool
	// Shadow is its shadow; of version 0 where none was ever written.
	Shadow shadow.Stored
}

// errName says what names are legal.
var errName = errors.New("a name is 1 to 48 letters, digits, ':', '_' and '-'")

// CheckName returns an error unless a device can have the name.
func CheckName(name string) error {
	if !validation.DeviceName(name) {
		return errName
	}
	return nil
}

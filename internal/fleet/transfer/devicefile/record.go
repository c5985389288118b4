package devicefile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"batchtask.dev/operator/internal/shadow"
)

// Names of the columns of CSV, which are the keys of JSON.
const (
	columnName     = "deviceName"
	columnDisabled = "disabled"
	columnVersion  = "version"
	columnReported = "reported"
	columnDesired  = "desired"
)

// errVersion leaves room for changes after the import.
var errVersion = fmt.Errorf("it is no whole number from 0 to %d", int64(shadow.MaxGivenVersion))

// columns are all of them, in the order in which they are written.
var columns = []string{columnName, columnDisabled, columnVersion, columnReported, columnDesired}

// set puts the text of a column into the record. Texts come from CSV as they are, and
// from JSON as it writes them, but for the string of a name.
func (r *record) set(column, text string) (err error) {
	switch column {
	case columnName:
		r.device.Name, err = text, CheckName(text)
	case columnDisabled:
		// Programs for tables write TRUE and FALSE.
		switch strings.ToLower(text) {
		case "true":
			r.device.Disabled = true
		case "false", "":
		default:
			err = errors.New("it is neither true nor false")
		}
	case columnVersion:
		if text != "" {
			if r.version, err = strconv.ParseInt(text, 10, 64); err != nil || r.version < 0 || r.version > shadow.MaxGivenVersion {
				err = errVersion
			}
		}
	case columnReported:
		r.reported, err = r.documents.read(text)
	case columnDesired:
		r.desired, err = r.documents.read(text)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", column, err)
	}
	return nil
}

// record is a line of a file on its way to a device.
type record struct {
	documents         *documents
	device            Device
	version           int64
	reported, desired document
}

// finish makes the shadow; one without a version is a first one.
func (r *record) finish() (Device, error) {
	if r.device.Name == "" {
		return Device{}, fmt.Errorf("%s is missing", columnName)
	}
	if r.version == 0 && r.reported.object == nil && r.desired.object == nil {
		return r.device, nil
	}
	stored, err := r.documents.shadow(r.reported, r.desired)
	if err != nil {
		return Device{}, err
	}
	r.device.Shadow = stored
	r.device.Shadow.Version = max(r.version, 1)
	return r.device, nil
}

package devicefile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

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
			if r.version, err = strconv.ParseInt(text, 10, 64); err != nil || r.version < 0 {
				err = errors.New("it is no whole number from 0")
			}
		}
	case columnReported:
		r.reported, err = document(text)
	case columnDesired:
		r.desired, err = document(text)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", column, err)
	}
	return nil
}

// record is a line of a file on its way to a device.
type record struct {
	device            Device
	version           int64
	reported, desired shadow.Object
}

func document(text string) (shadow.Object, error) {
	if text == "" {
		return nil, nil
	}
	return shadow.ParseDesired(text)
}

// finish makes the shadow. A file has no times, so that of the import takes their
// place; a shadow without a version is a first one.
func (r *record) finish(now time.Time) (Device, error) {
	if r.device.Name == "" {
		return Device{}, fmt.Errorf("%s is missing", columnName)
	}
	if r.version == 0 && r.reported == nil && r.desired == nil {
		return r.device, nil
	}
	doc := &shadow.Document{}
	if err := doc.Update(shadow.Update{Reported: r.reported, Desired: r.desired}, now); err != nil {
		return Device{}, err
	}
	doc.Version = max(r.version, 1)
	r.device.Shadow = doc.Stored()
	return r.device, nil
}

package shadow

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// ErrVersion : the update is made for another version than the stored one.
var ErrVersion = errors.New("the version differs")

// Update is one change to a shadow, by its device or by an application.
type Update struct {
	// Reported is merged into the reported part; nil leaves that part alone.
	Reported Object
	// Desired is merged into the desired part; nil leaves that part alone.
	Desired Object
	// ClearDesired removes the whole desired part, with its metadata. Desired must be
	// nil then.
	ClearDesired bool
	// Version is the version that the update is made for; 0 is any.
	Version int64
}

// Update makes a change. Both parts are merged as [Document.MergeDesired] says, and
// the version grows by one for all of it, also when no value changed.
//
// Errors match [ErrVersion] or [ErrLastVersion], or are [*DocumentError] for [ErrTooDeep]
// or [ErrTooLarge] of the part as it would be; the document is then as it was.
func (d *Document) Update(u Update, now time.Time) error {
	if u.Version != 0 && u.Version != d.Version {
		return fmt.Errorf("%w: it is %d, not %d", ErrVersion, d.Version, u.Version)
	}
	if d.Version == math.MaxInt64 {
		return ErrLastVersion
	}
	reported, desired := d.part(reportedPart), d.part(desiredPart)
	var err error
	if u.Reported != nil {
		if reported, _, err = reported.merged(u.Reported, now.UnixMilli()); err != nil {
			return err
		}
	}
	switch {
	case u.ClearDesired:
		desired = part{}
	case u.Desired != nil:
		if desired, _, err = desired.merged(u.Desired, now.UnixMilli()); err != nil {
			return err
		}
	}
	d.Reported, d.Metadata.Reported = reported.state, reported.meta
	d.Desired, d.Metadata.Desired = desired.state, desired.meta
	d.step(now)
	return nil
}

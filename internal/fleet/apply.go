package fleet

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/shadow"
)

// MaxAppliedTasks is how many tasks a shadow remembers.
//
// It must be so many that a task which has changed a shadow, and then was
// interrupted before that was counted, still finds itself there when it goes on.
// Other tasks push it out by changing the same shadow in the time between, each
// once. They are the other active tasks of the namespace, four by default, and
// those that take their places before the interrupted one goes on; but a resumed
// task begins with the very devices that it had not counted, so hardly any do.
// Sixteen leaves room for three times four. Where a TaskQuota allows more tasks
// than that, and more than sixteen are interrupted together over one device, the
// worst that happens is that a task is merged twice: its values are the same, and
// the version is one higher.
const MaxAppliedTasks = 16

// Shadow is the shadow of a device with the tasks that changed it.
type Shadow struct {
	shadow.Stored
	// AppliedTasks are the UIDs of the last tasks that changed the desired part, the
	// newest last, at most [MaxAppliedTasks].
	AppliedTasks []string
	// Acknowledged is how many of AppliedTasks, from the first, the device has
	// acknowledged.
	Acknowledged int
}

// The sizes of stored documents, in characters, up to which they are read: those that the
// schema of Device and the tables of a database allow. Both belong to a tenant, who can
// change them, and what is read takes many times its size in memory.
const (
	maxStoredPart     = 64 << 10
	maxStoredMetadata = 512 << 10
)

// fault returns what is wrong with the shadow before its documents are read; "" for
// nothing.
func (s Shadow) fault() string {
	if s.Version < 0 {
		return fmt.Sprintf("the stored shadow has the version %d, below 0", s.Version)
	}
	for _, part := range []struct {
		name, text string
		most       int
	}{{"reported", s.Reported, maxStoredPart}, {"desired", s.Desired, maxStoredPart}, {"metadata", s.Metadata, maxStoredMetadata}} {
		if len(part.text) > part.most && utf8.RuneCountInString(part.text) > part.most {
			return fmt.Sprintf("the stored %s part is longer than %d characters", part.name, part.most)
		}
	}
	return ""
}

// Document reads the shadow. The error, of one that is no document, is a
// [*DeviceError]: whatever is asked of the device, it is no fault of that.
func (s Shadow) Document() (*shadow.Document, error) {
	if fault := s.fault(); fault != "" {
		return nil, &DeviceError{Reason: v1alpha1.ReasonInvalidShadow, Message: fault}
	}
	doc, err := shadow.Parse(s.Stored)
	if err != nil {
		return nil, &DeviceError{Reason: v1alpha1.ReasonInvalidShadow, Message: err.Error()}
	}
	return doc, nil
}

// With returns the shadow with another document, by whomever it was changed. A
// device of which nothing is desired that it has not reported has acknowledged all
// tasks so far.
func (s Shadow) With(doc *shadow.Document) Shadow {
	s.Stored = doc.Stored()
	if doc.Delta() == nil {
		s.Acknowledged = len(s.AppliedTasks)
	}
	return s
}

// Equal reports whether both are the same to the letter.
func (s Shadow) Equal(other Shadow) bool {
	return s.Stored == other.Stored && s.Acknowledged == other.Acknowledged && slices.Equal(s.AppliedTasks, other.AppliedTasks)
}

// Applied is what an update makes of a shadow.
type Applied struct {
	// Shadow is to be stored in the place of the one that was read, if Write is set.
	Shadow Shadow
	// Write is false when the shadow stays as it is.
	Write bool
	// Delta is the message to publish; nil for none.
	Delta []byte
}

// Apply computes what the update makes of a shadow. Stores call it with what they
// have read, and write the outcome on the condition that nobody else has written
// in between. The error is a [*DeviceError].
//
// A shadow takes the update of a task exactly once, and its version grows by
// exactly one for it, also when all values are as wanted already. A task can come
// to a device again: the manager may stop after the shadow was written and before
// the task's checkpoint was, and the answer to a write may be lost. So the task's
// UID is written together with the shadow, in one step. If it is there already,
// nothing is written. The delta is then made of the shadow as it is now and
// returned once more, for nobody knows whether the broker had acknowledged it; a
// device that has complied meanwhile is sent nothing, and one that gets the same
// delta twice is no worse off than with any message of QoS 1.
func (u DesiredUpdate) Apply(s Shadow) (Applied, error) {
	doc, err := s.Document()
	if err != nil {
		return Applied{}, err
	}
	if slices.Contains(s.AppliedTasks, u.TaskUID) {
		return Applied{Shadow: s, Delta: shadow.DeltaMessage(doc, u.Now.Unix())}, nil
	}
	if _, err := doc.MergeDesired(u.Patch, u.Now); err != nil {
		return Applied{}, deviceError(err)
	}
	tasks := append(slices.Clone(s.AppliedTasks), u.TaskUID)
	forgotten := max(0, len(tasks)-MaxAppliedTasks)
	next := Shadow{AppliedTasks: tasks[forgotten:], Acknowledged: min(max(0, s.Acknowledged-forgotten), len(tasks)-forgotten)}
	return Applied{Shadow: next.With(doc), Write: true, Delta: shadow.DeltaMessage(doc, u.Now.Unix())}, nil
}

// deviceError gives an error of a merge its reason.
func deviceError(err error) *DeviceError {
	reason := v1alpha1.ReasonInvalidShadow
	switch {
	case errors.Is(err, shadow.ErrTooLarge):
		reason = v1alpha1.ReasonShadowTooLarge
	case errors.Is(err, shadow.ErrTooDeep):
		reason = v1alpha1.ReasonShadowTooDeep
	}
	return &DeviceError{Reason: reason, Message: err.Error()}
}

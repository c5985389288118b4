// Package schedule holds the rules of time of a task: when it starts, and until when
// it may run. It is pure; whoever calls brings the time.
package schedule

import (
	"time"
)

const (
	// MaxAhead is how far ahead of its creation a task may start (CreateTask,
	// scheduleTimeInSeconds: at most 86400 seconds; a later time counts as that).
	MaxAhead = 86400 * time.Second

	// MaxExecution is the longest time a task may run, and the time of a task that
	// gives none (CreateTask, maxExecutionTimeInSeconds: 0-86400, default 86400).
	MaxExecution = 86400 * time.Second

	// DefaultSkew is how far a schedule may lie in the past and still be admitted,
	// for callers whose clock runs a little slow.
	DefaultSkew = 5 * time.Second
)

// Start returns when a task starts that was created at created and asks for
// scheduleTimeInSeconds (Unix seconds, 0 for at once): no earlier than it was
// created and no later than MaxAhead after that.
func Start(created time.Time, scheduleTimeInSeconds int64) time.Time {
	asked := time.Unix(scheduleTimeInSeconds, 0)
	switch {
	case scheduleTimeInSeconds == 0 || asked.Before(created):
		return created
	case Clamped(created, scheduleTimeInSeconds):
		return created.Add(MaxAhead)
	default:
		return asked
	}
}

// Clamped reports whether a schedule is so far ahead of now that it counts as
// MaxAhead.
func Clamped(now time.Time, scheduleTimeInSeconds int64) bool {
	return time.Unix(scheduleTimeInSeconds, 0).After(now.Add(MaxAhead))
}

// Past reports whether a schedule lies in the past by more than skew. Zero, which
// stands for now, never does.
func Past(now time.Time, scheduleTimeInSeconds int64, skew time.Duration) bool {
	return scheduleTimeInSeconds != 0 && time.Unix(scheduleTimeInSeconds, 0).Before(now.Add(-skew).Truncate(time.Second))
}

// Deadline returns until when a task may run that started at start.
// maxExecutionTimeInSeconds of 0 counts as MaxExecution.
func Deadline(start time.Time, maxExecutionTimeInSeconds int32) time.Time {
	if maxExecutionTimeInSeconds == 0 {
		return start.Add(MaxExecution)
	}
	return start.Add(time.Duration(maxExecutionTimeInSeconds) * time.Second)
}

// End returns the moment at which a deadline that was read from a status is over.
// The API keeps whole seconds, cut off: the second that the deadline names still
// belongs to the task, which so has at least the time it was given.
func End(deadline time.Time) time.Time { return deadline.Add(time.Second) }

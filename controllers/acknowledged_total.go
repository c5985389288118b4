package controllers

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// A store of Device objects knows of those devices what they have acknowledged that exist
// and have not forgotten it, and notes what goes from when it is first asked. The status
// holds the rest: acknowledged, the total, and acknowledgedGone, how many of those the
// store does not know any more. So
//
//	total = gone before the store was asked + gone since + what the store knows now
//
// The first is what the status says, or what is missing to its total: devices that went
// while no manager saw it, or after the last write of one that died. Each device is in
// one of the three, so it counts once. What can be missed is as many new acknowledgements
// as devices went, where both happened while nobody watched; what was counted stays.

const (
	// acknowledgedFor is for how long a finished task is looked at.
	acknowledgedFor = 30 * 24 * time.Hour
	// acknowledgedPart is which part of the time since its end a task is left alone.
	acknowledgedPart = 60
)

// totals is what this leader remembers of tasks that devices acknowledge.
type totals struct {
	mu    sync.Mutex
	tasks map[types.UID]*taskTotal
}

type taskTotal struct {
	looked time.Time
	// before is how many devices were gone before this leader first asked.
	before int64
	known  bool
	listed bool // in the last list of tasks
}

// due says whether a task should be looked at now: while it runs each time, then ever more
// rarely, and no more after acknowledgedFor or when all have acknowledged.
func (t *totals) due(task *v1alpha1.BatchTask, now time.Time, all bool) bool {
	if !mayGrow(task) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.ofLocked(task.UID)
	known.listed = true
	if ended := task.Status.CompletionTime; ended != nil && task.Status.Phase.Finished() {
		since := now.Sub(ended.Time)
		if since > acknowledgedFor || !all && now.Sub(known.looked) < since/acknowledgedPart {
			return false
		}
	}
	return true
}

// forget drops what is remembered of tasks that due was not asked for since the last time.
func (t *totals) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for uid, known := range t.tasks {
		if !known.listed {
			delete(t.tasks, uid)
		}
		known.listed = false
	}
}

func (t *totals) ofLocked(uid types.UID) *taskTotal {
	if t.tasks == nil {
		t.tasks = map[types.UID]*taskTotal{}
	}
	known := t.tasks[uid]
	if known == nil {
		known = &taskTotal{}
		t.tasks[uid] = known
	}
	return known
}

// add returns the total of a task, and how many of it are gone, after what the store says.
func (t *totals) add(task *v1alpha1.BatchTask, n fleet.Acknowledged, now time.Time) (total, gone int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.ofLocked(task.UID)
	known.looked = now
	written := task.Status.Counts().Acknowledged
	if n.Total {
		return max(written, n.Devices), task.Status.AcknowledgedGone
	}
	if !known.known {
		known.known = true
		known.before = max(task.Status.AcknowledgedGone, written-n.Devices) - n.Gone
	}
	gone = known.before + n.Gone
	total = max(written, gone+n.Devices)
	if matched := task.Status.Counts().Matched; task.Status.Phase.Finished() {
		total = max(written, min(total, matched)) // a device that went before it had a result is in no count
	}
	return total, gone
}

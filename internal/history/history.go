// Package history holds the rules of how long finished tasks are kept. It is pure;
// whoever calls brings tasks and time.
package history

import (
	"cmp"
	"slices"
	"time"

	"k8s.io/utils/ptr"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/taskid"
)

// TTL returns how long a finished task is kept, and false if that has no end: a task
// that says nothing is kept until somebody deletes it. Were the operator to delete it, what
// applies it from Git would make it again, and it would send its old command once more.
//
// Versions before this rule stored their default, 2592000 s, in every task that said
// nothing. So this value counts as none, except in a task of the HTTP front.
func TTL(task *v1alpha1.BatchTask) (time.Duration, bool) {
	seconds := task.Spec.TTLSecondsAfterFinished
	if seconds == nil || *seconds == v1alpha1.LegacyTTLSecondsAfterFinished && !FromFront(task) {
		return 0, false
	}
	return time.Duration(*seconds) * time.Second, true
}

// FromFront reports whether the HTTP front has made the task: its name is its task ID.
func FromFront(task *v1alpha1.BatchTask) bool {
	return taskid.Valid(task.Name) && (task.Status.TaskID == task.Name || task.Labels[v1alpha1.LabelTaskID] == task.Name)
}

// Completed returns when a finished task has finished.
func Completed(task *v1alpha1.BatchTask) time.Time {
	if task.Status.CompletionTime != nil {
		return task.Status.CompletionTime.Time
	}
	return task.CreationTimestamp.Time
}

// Limits are how many finished tasks of a namespace are kept: of those that have a TTL,
// for no others are ever deleted, and those of the HTTP front apart.
type Limits struct {
	Tasks, FromFront int32
}

// LimitsOf returns the limits of a namespace whose TaskQuota is quota; nil for none.
func LimitsOf(quota *v1alpha1.TaskQuota) Limits {
	if quota == nil {
		quota = &v1alpha1.TaskQuota{}
	}
	return Limits{
		Tasks:     ptr.Deref(quota.Spec.MaxFinishedTasks, v1alpha1.DefaultMaxFinishedTasks),
		FromFront: ptr.Deref(quota.Spec.MaxFinishedLegacyTasks, v1alpha1.DefaultMaxFinishedLegacyTasks),
	}
}

// Excess returns the tasks of a namespace that are to be deleted because there are more
// than the limits say, the ones that finished first before others.
func Excess(tasks []v1alpha1.BatchTask, limits Limits) []*v1alpha1.BatchTask {
	var own, front []*v1alpha1.BatchTask
	for i := range tasks {
		task := &tasks[i]
		if _, ends := TTL(task); !ends || !task.Status.Phase.Finished() || !task.DeletionTimestamp.IsZero() {
			continue
		}
		if FromFront(task) {
			front = append(front, task)
		} else {
			own = append(own, task)
		}
	}
	return slices.Concat(beyond(own, limits.Tasks), beyond(front, limits.FromFront))
}

// beyond returns all but the newest.
func beyond(tasks []*v1alpha1.BatchTask, limit int32) []*v1alpha1.BatchTask {
	excess := len(tasks) - int(limit)
	if excess <= 0 {
		return nil
	}
	slices.SortFunc(tasks, func(a, b *v1alpha1.BatchTask) int {
		return cmp.Or(Completed(a).Compare(Completed(b)), cmp.Compare(a.Name, b.Name))
	})
	return tasks[:excess]
}

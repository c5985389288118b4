package quota

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"batchtask.dev/operator/api/v1alpha1"
)

// Holder is the task that a slot belongs to.
type Holder struct {
	UID       types.UID
	Namespace string
	Name      string
}

// LimitError says that a namespace has as many active tasks as it may have.
type LimitError struct {
	Namespace string
	Limit     int32
	Holders   []string // names of the active tasks, sorted

	reserved []v1alpha1.TaskSlot // of them those that no task has been seen for
}

// Error names the limit and the tasks that use it up.
func (e *LimitError) Error() string {
	const most = 10
	names, more := e.Holders, ""
	if len(names) > most {
		names, more = names[:most], fmt.Sprintf(" and %d more", len(e.Holders)-most)
	}
	if len(names) == 0 {
		return fmt.Sprintf("namespace %q may have %d active tasks (TaskQuota %q, spec.maxActiveTasks)",
			e.Namespace, e.Limit, v1alpha1.TaskQuotaName)
	}
	return fmt.Sprintf("namespace %q may have %d active tasks (TaskQuota %q, spec.maxActiveTasks), and these are waiting or processing: %s%s",
		e.Namespace, e.Limit, v1alpha1.TaskQuotaName, strings.Join(names, ", "), more)
}

// Holds reports whether the task has a slot in this state of the ledger.
func Holds(q *v1alpha1.TaskQuota, uid types.UID) bool { return find(q, uid) != nil }

func find(q *v1alpha1.TaskQuota, uid types.UID) *v1alpha1.TaskSlot {
	for i := range q.Status.Slots {
		if q.Status.Slots[i].UID == uid {
			return &q.Status.Slots[i]
		}
	}
	return nil
}

// checkFree returns a *LimitError when no slot is free.
func checkFree(q *v1alpha1.TaskQuota) error {
	if len(q.Status.Slots) < int(q.Spec.MaxActiveTasks) {
		return nil
	}
	full := &LimitError{Namespace: q.Namespace, Limit: q.Spec.MaxActiveTasks, Holders: make([]string, 0, len(q.Status.Slots))}
	for _, slot := range q.Status.Slots {
		full.Holders = append(full.Holders, slot.Name)
		if !slot.Bound {
			full.reserved = append(full.reserved, slot)
		}
	}
	slices.Sort(full.Holders)
	return full
}

// take gives the task a slot, or binds the one it has. It reports whether the
// ledger was changed.
func take(q *v1alpha1.TaskQuota, task Holder, bound bool, now metav1.Time) (changed bool, err error) {
	if slot := find(q, task.UID); slot != nil {
		if slot.Bound || !bound {
			return false, nil
		}
		slot.Bound = true
		return true, nil
	}
	if err := checkFree(q); err != nil {
		return false, err
	}
	q.Status.Slots = append(q.Status.Slots, v1alpha1.TaskSlot{UID: task.UID, Name: task.Name, ReservedAt: now, Bound: bound})
	return true, nil
}

// drop takes the slots of these tasks away. It reports whether the ledger was changed.
func drop(q *v1alpha1.TaskQuota, uids ...types.UID) (changed bool) {
	before := len(q.Status.Slots)
	q.Status.Slots = slices.DeleteFunc(q.Status.Slots, func(slot v1alpha1.TaskSlot) bool {
		return slices.Contains(uids, slot.UID)
	})
	return len(q.Status.Slots) != before
}

// unfinished returns the tasks that have not finished: those that wait or run
// before those that have no phase yet, the oldest first.
func unfinished(tasks []v1alpha1.BatchTask) []v1alpha1.BatchTask {
	left := slices.DeleteFunc(slices.Clone(tasks), func(task v1alpha1.BatchTask) bool { return task.Status.Phase.Finished() })
	rank := func(task v1alpha1.BatchTask) int {
		if task.Status.Phase == "" {
			return 1
		}
		return 0
	}
	slices.SortFunc(left, func(a, b v1alpha1.BatchTask) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	return left
}

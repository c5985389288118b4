package controllers

import (
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/executor"
)

// Values of status.retCode: the module codes of CreateTask where one fits.
const (
	retCodeDevices int32 = 1     // devices failed
	retCodeInvalid int32 = 10002 // a parameter has an illegal value
	retCodeProduct int32 = 10004 // the product does not exist
	retCodeQuota   int32 = 10005 // too many waiting and processing tasks
)

// maxMessage is the longest text in a status, in characters: what the schema of
// status.errMsg allows.
const maxMessage = 1024

// takeProgress copies what a run has counted. That it has not come anywhere yet is
// not worth a write. A run that has not counted the devices yet says 0, as does one
// for which there are none: only its end tells which it was.
func (d *decision) takeProgress(p executor.Progress) {
	if counts := d.status.Counts(); d.status.Devices != nil || p.Matched > 0 {
		counts.Matched, counts.Succeeded, counts.Failed = p.Matched, p.Succeeded, p.Failed
		d.status.Devices = &counts
	}
	d.status.Percent = percent(p.Succeeded, p.Matched)
	if p.Cursor != "" || d.status.Checkpoint != nil {
		d.status.Checkpoint = &v1alpha1.Checkpoint{Cursor: p.Cursor, Pending: p.Pending} // signed by stamp
	}
	d.status.Failures = p.Failures
}

// percent is part/whole in whole percent, rounded down; 0 of 0 is 0.
func percent(part, whole int64) int32 {
	if whole == 0 {
		return 0
	}
	return int32(part * 100 / whole) //nolint:gosec // 0 to 100
}

// setInProgress sets the conditions of a task that waits or runs: kstatus reads
// Reconciling and says InProgress.
func (d *decision) setInProgress(task *v1alpha1.BatchTask, seen observation, reason, message string) {
	d.setConditions(task, seen, reason, message, map[string]metav1.ConditionStatus{
		v1alpha1.ConditionReady:       metav1.ConditionFalse,
		v1alpha1.ConditionReconciling: metav1.ConditionTrue,
		v1alpha1.ConditionStalled:     metav1.ConditionFalse,
		v1alpha1.ConditionComplete:    metav1.ConditionFalse,
		v1alpha1.ConditionFailed:      metav1.ConditionFalse,
	})
}

// setFinished sets the conditions of a finished task: kstatus says Current for one
// that is Done, or Cancelled as its spec asked, and Failed for one that is Stalled.
func (d *decision) setFinished(task *v1alpha1.BatchTask, seen observation, reason, message string) {
	is := func(yes bool) metav1.ConditionStatus {
		if yes {
			return metav1.ConditionTrue
		}
		return metav1.ConditionFalse
	}
	hasFailed := d.status.Phase == v1alpha1.TaskPhaseFailed
	d.setConditions(task, seen, reason, message, map[string]metav1.ConditionStatus{
		v1alpha1.ConditionReady:       is(!hasFailed),
		v1alpha1.ConditionReconciling: metav1.ConditionFalse,
		v1alpha1.ConditionStalled:     is(hasFailed),
		v1alpha1.ConditionComplete:    is(d.status.Phase == v1alpha1.TaskPhaseDone),
		v1alpha1.ConditionFailed:      is(hasFailed),
	})
}

// conditionTypes are a task's conditions in the order they are shown.
var conditionTypes = []string{
	v1alpha1.ConditionReady, v1alpha1.ConditionReconciling, v1alpha1.ConditionStalled,
	v1alpha1.ConditionComplete, v1alpha1.ConditionFailed,
}

func (d *decision) setConditions(task *v1alpha1.BatchTask, seen observation, reason, message string, is map[string]metav1.ConditionStatus) {
	for _, conditionType := range conditionTypes {
		setCondition(&d.status.Conditions, seen.now, metav1.Condition{
			Type: conditionType, Status: is[conditionType], Reason: reason,
			Message: message, ObservedGeneration: task.Generation,
		})
	}
}

// setCondition sets one condition. Its time is now if its status has changed.
func setCondition(conditions *[]metav1.Condition, now time.Time, condition metav1.Condition) {
	condition.Message = cutMessage(condition.Message)
	if old := meta.FindStatusCondition(*conditions, condition.Type); old == nil || old.Status != condition.Status {
		condition.LastTransitionTime = metav1.NewTime(now)
	}
	meta.SetStatusCondition(conditions, condition)
}

// cutMessage shortens a text to maxMessage, never within a character.
func cutMessage(text string) string {
	text = strings.ToValidUTF8(text, "�")
	if runes := []rune(text); len(runes) > maxMessage {
		return string(runes[:maxMessage-1]) + "…"
	}
	return text
}

// maxEventNote is the longest note of an event, in bytes: the API server refuses
// a longer one, and nobody would hear of the event.
const maxEventNote = 1024

// eventNote shortens a text to what an event can say, never within a character.
func eventNote(text string) string {
	const ellipsis = "…"
	text = strings.ToValidUTF8(text, "�")
	if len(text) <= maxEventNote {
		return text
	}
	return strings.ToValidUTF8(text[:maxEventNote-len(ellipsis)], "") + ellipsis
}

// readyReason and readyMessage are what the Ready condition says, which is also
// what events say.
func readyReason(task *v1alpha1.BatchTask) string {
	return conditionReason(task.Status.Conditions, v1alpha1.ConditionReady)
}

// heldUp begins what the Ready condition says of a task that something holds up.
const heldUp = "Held up: "

// isHeldUp reports whether the Ready condition says so.
func isHeldUp(conditions []metav1.Condition) bool {
	c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	return c != nil && strings.HasPrefix(c.Message, heldUp)
}

func conditionReason(conditions []metav1.Condition, conditionType string) string {
	if c := meta.FindStatusCondition(conditions, conditionType); c != nil {
		return c.Reason
	}
	return ""
}

func readyMessage(task *v1alpha1.BatchTask) string {
	if c := meta.FindStatusCondition(task.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		return c.Message
	}
	return ""
}

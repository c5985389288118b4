package shim

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/internal/schedule"
	"batchtask.dev/operator/internal/taskid"
)

// describe tells a task as the API does.
func describe(task *v1alpha1.BatchTask) qcloud.Task {
	counts := task.Status.Counts()
	return qcloud.Task{
		Type:          string(task.Spec.TaskType),
		ID:            taskID(task),
		ProductID:     task.Spec.ProductID,
		Status:        status(task),
		CreateTime:    task.CreationTimestamp.Unix(),
		UpdateTime:    updateTime(task),
		DoneTime:      seconds(task.Status.CompletionTime),
		ScheduleTime:  schedule.Start(task.CreationTimestamp.Time, task.Spec.ScheduleTimeInSeconds).Unix(),
		RetCode:       int64(task.Status.RetCode),
		ErrMsg:        task.Status.ErrMsg,
		Percent:       int64(task.Status.Percent),
		AllDeviceCnt:  counts.Matched,
		DoneDeviceCnt: counts.Succeeded,
	}
}

// status is the task's state. A waiting task that is to be cancelled counts as
// cancelled: nothing can start it any more, and the caller whose CancelTask was
// answered a moment ago expects it.
func status(task *v1alpha1.BatchTask) qcloud.Status {
	switch task.Status.Phase {
	case v1alpha1.TaskPhaseProcessing:
		return qcloud.StatusProcessing
	case v1alpha1.TaskPhaseDone:
		return qcloud.StatusDone
	case v1alpha1.TaskPhaseFailed:
		return qcloud.StatusFailed
	case v1alpha1.TaskPhaseCancelled:
		return qcloud.StatusCancelled
	case v1alpha1.TaskPhaseWaiting:
	}
	if task.Spec.Cancel {
		return qcloud.StatusCancelled
	}
	return qcloud.StatusWaiting
}

// taskID returns the task's ID, "" if it has none yet. Until the controller has
// seen a task, its ID is where the webhook has put it.
func taskID(task *v1alpha1.BatchTask) string {
	switch {
	case task.Status.TaskID != "":
		return task.Status.TaskID
	case taskid.Valid(task.Name):
		return task.Name
	default:
		return task.Labels[v1alpha1.LabelTaskID]
	}
}

// updateTime is when the task's state changed last.
func updateTime(task *v1alpha1.BatchTask) int64 {
	last := max(task.CreationTimestamp.Unix(), seconds(task.Status.StartTime), seconds(task.Status.CompletionTime))
	for i := range task.Status.Conditions {
		last = max(last, seconds(&task.Status.Conditions[i].LastTransitionTime))
	}
	return last
}

// seconds returns Unix seconds, 0 for no time.
func seconds(at *metav1.Time) int64 {
	if at.IsZero() {
		return 0
	}
	return at.Unix()
}

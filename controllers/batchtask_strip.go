package controllers

import (
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"batchtask.dev/operator/api/v1alpha1"
)

// StripFinished is the cache's transform for BatchTasks. Of a task that has finished it
// keeps what the reconcilers ask for, a few hundred bytes whatever the payload: there may be
// a hundred thousand of them. Of others it drops the managed fields only.
//
// A stripped task must never be what a write is made from, or the write would take away
// what was stripped. The one write of a finished task, observeGeneration, reads it live.
func StripFinished(obj any) (any, error) {
	task, ok := obj.(*v1alpha1.BatchTask)
	if !ok {
		return obj, nil // the last known state of what was deleted unseen
	}
	task.ManagedFields = nil
	if !task.Status.Phase.Finished() {
		return task, nil
	}
	kept := &v1alpha1.BatchTask{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: shared(task.Namespace), Name: task.Name, UID: task.UID, ResourceVersion: task.ResourceVersion,
			Generation: task.Generation, CreationTimestamp: task.CreationTimestamp,
			DeletionTimestamp: task.DeletionTimestamp, Finalizers: task.Finalizers,
		},
		Spec: v1alpha1.BatchTaskSpec{
			TaskType: shared(task.Spec.TaskType), ProductID: shared(task.Spec.ProductID),
			TTLSecondsAfterFinished: task.Spec.TTLSecondsAfterFinished,
		},
		Status: v1alpha1.BatchTaskStatus{
			Phase: shared(task.Status.Phase), ObservedGeneration: task.Status.ObservedGeneration, TaskID: task.Status.TaskID,
			StartTime: task.Status.StartTime, CompletionTime: task.Status.CompletionTime, Devices: task.Status.Devices,
		},
	}
	if kept.Status.TaskID == kept.Name {
		kept.Status.TaskID = kept.Name // one string instead of two
	}
	return kept, nil
}

// shared returns s in the one copy that all who ask for it have.
func shared[T ~string](s T) T { return unique.Make(s).Value() }

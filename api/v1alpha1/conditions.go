package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// LabelTaskID carries status.taskID, so that a task can be found by it.
const LabelTaskID = "iot.batchtask.dev/task-id"

// LabelCredentials marks, with the value "true", a Secret that holds the
// credentials of callers of the legacy HTTP API.
const LabelCredentials = "iot.batchtask.dev/credentials" //nolint:gosec // the name of a label

// Keys of a Secret that holds credentials.
const (
	// CredentialsSecretID names the credentials: 1 to 128 printable ASCII characters
	// without spaces, unique in the cluster.
	CredentialsSecretID = "secretId"
	// CredentialsSecretKey is the key that calls are signed with: 1 to 1024 bytes.
	CredentialsSecretKey = "secretKey"
)

// Reasons of the events of a Secret that holds credentials.
const (
	// ReasonDuplicateSecretID : an older Secret of the namespace has the same secretId, so
	// this one is not used.
	ReasonDuplicateSecretID = "DuplicateSecretId"
	// ReasonInvalidCredentials : secretId or secretKey is missing or not legal.
	ReasonInvalidCredentials = "InvalidCredentials"
)

// Condition types. Ready, Reconciling and Stalled are what kstatus reads: a task
// that waits or runs is InProgress, one that is Done (or Cancelled, as asked) is
// Current, one that has Failed is Failed.
const (
	// ConditionComplete is True once a task is Done: every matched device succeeded.
	ConditionComplete = "Complete"
	// ConditionFailed is True once a task has Failed.
	ConditionFailed = "Failed"
	// ConditionReady is True when what the spec asks for has been carried out
	// (BatchTask), or when tasks may run (Product).
	ConditionReady = "Ready"
	// ConditionReconciling is True while a task waits or runs.
	ConditionReconciling = "Reconciling"
	// ConditionStalled is True when nothing more will happen and the spec has not
	// been carried out.
	ConditionStalled = "Stalled"
)

// Reasons of a BatchTask's conditions and events.
const (
	// ReasonScheduled : the task holds a slot and waits for status.scheduleTime.
	ReasonScheduled = "Scheduled"
	// ReasonStarted : the task is being carried out.
	ReasonStarted = "Started"
	// ReasonCompleted : every matched device has succeeded.
	ReasonCompleted = "Completed"
	// ReasonNoDeviceMatched : the task is Done, and no device matched its filter.
	ReasonNoDeviceMatched = "NoDeviceMatched"
	// ReasonCancelled : the task was cancelled with spec.cancel.
	ReasonCancelled = "Cancelled"
	// ReasonDevicesFailed : the task has Failed because some device failed for good.
	ReasonDevicesFailed = "DevicesFailed"
	// ReasonDeadlineExceeded : the task has Failed because at status.deadline some
	// device had no result. Also the reason of each such device.
	ReasonDeadlineExceeded = "DeadlineExceeded"
	// ReasonInternalError : the task has Failed because the program has met a fault of its
	// own while it carried the task out; the manager's log has it.
	ReasonInternalError = "InternalError"
	// ReasonQuotaExceeded : the task has Failed because it holds no slot of the
	// namespace's TaskQuota and none was free; it was created past the webhook.
	ReasonQuotaExceeded = "QuotaExceeded"
	// ReasonInvalidSpec : the task has Failed because its spec breaks a rule; it
	// was created past the webhook.
	ReasonInvalidSpec = "InvalidSpec"
	// ReasonProductNotFound : the task has Failed because its product is gone.
	ReasonProductNotFound = "ProductNotFound"
	// ReasonProductNotReady : the task is held up because its product is not Ready.
	ReasonProductNotReady = "ProductNotReady"
)

// EventFailed is the reason of the event of a task that has Failed, whatever the
// reason of its conditions, with which the event's note begins. All other events
// have the reason of the conditions.
const EventFailed = "Failed"

// Reasons of a Product's conditions and events.
const (
	// ReasonProductReady : tasks may run.
	ReasonProductReady = "ProductReady"
	// ReasonProductIDConflict : spec.productID belongs to another namespace, or to an
	// older Product of this one.
	ReasonProductIDConflict = "ProductIDConflict"
	// ReasonProductIDLimit : the namespace has claimed as many product IDs as it may.
	ReasonProductIDLimit = "ProductIDLimit"
	// ReasonFleetUnavailable : the product's devices cannot be read. Also of a BatchTask that
	// has Failed because its fleet could not be reached at status.deadline.
	ReasonFleetUnavailable = "FleetUnavailable"
)

// Reasons of a device's failure, besides ReasonDeadlineExceeded.
const (
	// ReasonPublishRejected : the broker ended the connection each time it was sent
	// this message alone.
	ReasonPublishRejected = "PublishRejected"
	// ReasonShadowTooLarge : the shadow would be larger than the limit.
	ReasonShadowTooLarge = "ShadowTooLarge"
	// ReasonShadowTooDeep : the shadow would be nested deeper than the limit.
	ReasonShadowTooDeep = "ShadowTooDeep"
	// ReasonInvalidShadow : the stored shadow is not a shadow document.
	ReasonInvalidShadow = "InvalidShadow"
)

// Cause types of admission refusals, beside the API's own field causes. Programs
// compare these; messages are for people.
const (
	// CauseTaskLimitExceeded : the namespace has as many active tasks as it may have.
	CauseTaskLimitExceeded metav1.CauseType = "TaskLimitExceeded"
	// CauseProductNotFound : the namespace has no product with this ID.
	CauseProductNotFound metav1.CauseType = "ProductNotFound"
	// CauseProductNotReady : the product exists and may run no task now.
	CauseProductNotReady metav1.CauseType = "ProductNotReady"
)

// Finished reports whether p is a phase that never changes.
func (p TaskPhase) Finished() bool {
	return p == TaskPhaseDone || p == TaskPhaseFailed || p == TaskPhaseCancelled
}

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TaskType says what a task does to each device.
// +kubebuilder:validation:Enum=UpdateShadow;PublishMessage
type TaskType string

const (
	// TaskTypeUpdateShadow merges tasks.updateShadowTask.desired into each device's shadow.
	TaskTypeUpdateShadow TaskType = "UpdateShadow"
	// TaskTypePublishMessage sends tasks.publishMessageTask.payload to each device.
	TaskTypePublishMessage TaskType = "PublishMessage"
)

// LegacyTTLSecondsAfterFinished is how long a finished task is kept that the HTTP front
// has made: 30 days. It was the default of all tasks once, so in others it counts as not
// set.
const LegacyTTLSecondsAfterFinished int32 = 2592000

// TaskPhase is where a task stands. Phases only move forward, and a finished
// phase (Done, Failed, Cancelled) never changes.
// +kubebuilder:validation:Enum=Waiting;Processing;Done;Failed;Cancelled
type TaskPhase string

const (
	// TaskPhaseWaiting is a task that holds a slot and waits for its time.
	TaskPhaseWaiting TaskPhase = "Waiting"
	// TaskPhaseProcessing is a task whose devices are being served.
	TaskPhaseProcessing TaskPhase = "Processing"
	// TaskPhaseDone is a task of which every matched device has succeeded.
	TaskPhaseDone TaskPhase = "Done"
	// TaskPhaseFailed is a task that could not run, or of which some device failed.
	TaskPhaseFailed TaskPhase = "Failed"
	// TaskPhaseCancelled is a task that was cancelled before it had finished.
	TaskPhaseCancelled TaskPhase = "Cancelled"
)

// BatchTaskSpec is what CreateTask takes, plus cancel and ttlSecondsAfterFinished.
// Only those two may change after the task has been created.
//
// +kubebuilder:validation:XValidation:rule="self.taskType != 'UpdateShadow' || has(self.tasks.updateShadowTask)",message="tasks.updateShadowTask is required when taskType is UpdateShadow",fieldPath=".tasks.updateShadowTask",reason=FieldValueRequired
// +kubebuilder:validation:XValidation:rule="self.taskType != 'PublishMessage' || has(self.tasks.publishMessageTask)",message="tasks.publishMessageTask is required when taskType is PublishMessage",fieldPath=".tasks.publishMessageTask",reason=FieldValueRequired
type BatchTaskSpec struct {
	// taskType says what is done to each device: UpdateShadow changes the desired
	// state of its shadow, PublishMessage sends it a message. Immutable.
	// +required
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: create another task"
	TaskType TaskType `json:"taskType"`

	// productID is the ID of the product whose devices the task is for: the
	// spec.productID of a Product in this namespace, 1 to 32 letters and digits.
	// Immutable.
	// +required
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9]{1,32}$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: create another task"
	ProductID string `json:"productID"`

	// deviceNameFilter is a regular expression in RE2 syntax
	// (https://github.com/google/re2/wiki/Syntax). The task is for every enabled
	// device whose name it matches. It is not anchored: "door" matches
	// "front-door-1"; write "^door$" for the whole name and ".*" for all devices.
	// At most 1024 characters, and 2112 instructions when it is compiled, of which only
	// repeat counts make many: no count need be greater than 48, the length of a name.
	// Immutable.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: create another task"
	DeviceNameFilter string `json:"deviceNameFilter"`

	// tasks holds what the task does. The block that belongs to taskType is
	// required; the other one is ignored. Immutable.
	// +required
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: create another task"
	Tasks TaskDetails `json:"tasks"`

	// scheduleTimeInSeconds is when the task starts, in Unix seconds; 0 is now.
	// A time in the past is refused. A time more than 86400 seconds ahead counts as
	// 86400 seconds ahead: the time that counts is in status.scheduleTime.
	// Immutable.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=253402300799
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: create another task"
	ScheduleTimeInSeconds int64 `json:"scheduleTimeInSeconds"`

	// maxExecutionTimeInSeconds is how long the task may run, in seconds, counted
	// from its start. A device that has no result by then counts as failed.
	// 0 to 86400; 0 counts as 86400. Immutable.
	// +optional
	// +kubebuilder:default=86400
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=86400
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: create another task"
	MaxExecutionTimeInSeconds int32 `json:"maxExecutionTimeInSeconds"`

	// cancel asks for the task to be cancelled. A waiting task never starts; a
	// processing one stops, and the devices it has served stay served. Once true
	// it stays true, and it has no effect on a finished task.
	// +optional
	// +kubebuilder:default=false
	// +kubebuilder:validation:XValidation:rule="self || !oldSelf",message="a cancelled task cannot be resumed: create another task"
	Cancel bool `json:"cancel"`

	// ttlSecondsAfterFinished is how long the task is kept after it has finished,
	// in seconds; then it is deleted. Without it the task is kept until somebody deletes
	// it. At most 315360000 (ten years); 0 deletes it at once. Leave it out of tasks in
	// Git: one that the operator deletes is applied again, and runs again. 2592000 was the
	// default once and counts as not set; write 2592001 for 30 days. The oldest finished
	// tasks that have it go earlier where there are more than spec.maxFinishedTasks of the
	// TaskQuota.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=315360000
	TTLSecondsAfterFinished *int32 `json:"ttlSecondsAfterFinished,omitempty"`
}

// TaskDetails holds one block for each task type.
type TaskDetails struct {
	// updateShadowTask is what an UpdateShadow task does.
	// +optional
	UpdateShadowTask *UpdateShadowTask `json:"updateShadowTask,omitempty"`

	// publishMessageTask is what a PublishMessage task does.
	// +optional
	PublishMessageTask *PublishMessageTask `json:"publishMessageTask,omitempty"`
}

// UpdateShadowTask changes the desired state of device shadows.
type UpdateShadowTask struct {
	// desired is a string that holds a JSON object, such as '{"state":"open"}'.
	// It is merged into the desired state of each shadow: objects are merged field
	// by field, null deletes a field, any other value replaces what was there. At
	// most five levels deep and 16384 bytes.
	// +required
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=16384
	Desired string `json:"desired"`
}

// PublishMessageTask sends a message to devices.
type PublishMessageTask struct {
	// topic is the last part of the MQTT topic: the message goes to
	// {productID}/{deviceName}/{topic}. 1 to 128 letters, digits, ':', '_' and '-'.
	// Where the product lists topics it must be one of them.
	// +required
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9:_-]{1,128}$`
	Topic string `json:"topic"`

	// payload is the content of the message, sent as it is. At most 16384 bytes.
	// +required
	// +kubebuilder:validation:MaxLength=16384
	Payload string `json:"payload"`
}

// BatchTaskStatus is what has become of a task.
type BatchTaskStatus struct {
	// phase is Waiting, Processing, Done, Failed or Cancelled. It only moves forward.
	// +optional
	Phase TaskPhase `json:"phase,omitempty"`

	// observedGeneration is the metadata.generation that this status was made from;
	// -1 until the operator has looked at the task.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// taskID names the task to legacy callers: 24 hexadecimal digits, also on the
	// label iot.batchtask.dev/task-id.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{24}$`
	TaskID string `json:"taskID,omitempty"`

	// scheduleTime is when the task starts: spec.scheduleTimeInSeconds, but no more
	// than 86400 seconds after the task was created.
	// +optional
	ScheduleTime *metav1.Time `json:"scheduleTime,omitempty"`

	// startTime is when the task became Processing.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`

	// deadline is startTime plus spec.maxExecutionTimeInSeconds.
	// +optional
	Deadline *metav1.Time `json:"deadline,omitempty"`

	// completionTime is when the task became Done, Failed or Cancelled.
	// +optional
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`

	// devices counts the devices of the task; absent until they have been counted.
	// +optional
	Devices *DeviceCounts `json:"devices,omitempty"`

	// percent is succeeded/matched in whole percent, rounded down; 100 for a Done
	// task that matched no device.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Percent int32 `json:"percent"`

	// retCode is 0 unless the task has failed: then 10002 (the specification is
	// not valid), 10004 (there is no such product), 10005 (too many active tasks)
	// or 1 (devices failed).
	// +optional
	// +kubebuilder:default=0
	RetCode int32 `json:"retCode"`

	// errMsg says in a sentence why the task has failed; empty otherwise.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	ErrMsg string `json:"errMsg,omitempty"`

	// checkpoint is where a restarted manager goes on.
	// +optional
	Checkpoint *Checkpoint `json:"checkpoint,omitempty"`

	// acknowledgedGone is how many of devices.acknowledged were deleted since, or have
	// forgotten the task for later ones. The operator goes on counting from it.
	// +optional
	// +kubebuilder:validation:Minimum=0
	AcknowledgedGone int64 `json:"acknowledgedGone,omitempty"`

	// failures are the first devices that failed, at most 20. All are counted in
	// devices.failed.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=20
	Failures []DeviceFailure `json:"failures,omitempty"`

	// conditions are Complete, Failed, Ready, Reconciling and Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// DeviceCounts counts the devices of a task. succeeded and failed are exact at
// any moment and after any crash: a device is counted once its result is known
// and the results of all devices before it, in the order of names, are known.
type DeviceCounts struct {
	// matched is how many devices the task is for: while it runs, as counted when
	// it started; once it is Done or Failed, exactly succeeded + failed.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Matched int64 `json:"matched"`

	// succeeded is how many devices succeeded: the broker acknowledged the message
	// (PublishMessage), or the shadow is stored and the broker acknowledged its
	// delta (UpdateShadow). It does not say that the device has received it.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Succeeded int64 `json:"succeeded"`

	// failed is how many devices failed for good or had no result at the deadline.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Failed int64 `json:"failed"`

	// acknowledged is how many devices have done what an UpdateShadow task wants of
	// them: since the task changed its shadow, each has reported all that is desired of
	// it, or cleared the desired state. It is brought up to date every few seconds while
	// the task exists, also after it has finished, and never falls. A device that still
	// owes something to another task does not count, nor does one whose shadow more than
	// 16 other tasks have changed before it acknowledged. After the task has finished it is
	// brought up to date ever more rarely, and no more after 30 days. It takes the shadow
	// service to learn of devices at all; 0 for PublishMessage.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Acknowledged int64 `json:"acknowledged"`
}

// Counts returns the counts of the task's devices, all 0 as long as they have not been
// counted.
func (s *BatchTaskStatus) Counts() DeviceCounts {
	if s.Devices == nil {
		return DeviceCounts{}
	}
	return *s.Devices
}

// Checkpoint is where a restarted manager goes on: every device up to cursor has
// its result and is in the counts, except those of pending; none after it is.
//
// +kubebuilder:validation:XValidation:rule="has(self.epoch) || !has(self.pending) || size(self.pending) == 0",message="pending needs an epoch",fieldPath=".pending"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.epoch) || (has(self.sequence) ? self.sequence : 0) > (has(oldSelf.sequence) ? oldSelf.sequence : 0) || (self.cursor == oldSelf.cursor && has(self.epoch) && self.epoch == oldSelf.epoch && has(self.pending) == has(oldSelf.pending) && (!has(self.pending) || self.pending == oldSelf.pending))",message="a newer program runs this task: whoever changes its checkpoint must raise status.checkpoint.sequence, which this program does not know; let the newer one run until the task has finished",reason=FieldValueForbidden
type Checkpoint struct {
	// cursor is the name of the last device that is counted; empty before the first.
	// +optional
	// +kubebuilder:validation:MaxLength=48
	Cursor string `json:"cursor"`

	// epoch names the manager that runs the task: its identity in the leader election
	// and how often the leader had changed. Only that manager may write the checkpoint
	// and the counts; another first writes its own epoch. Absent where no manager runs
	// the task, or one that is older than this field.
	// +optional
	// +kubebuilder:validation:MaxLength=320
	Epoch string `json:"epoch,omitempty"`

	// sequence rises with each write of the checkpoint, of the counts or of the phase.
	// A program that does not know it is refused, since it does not raise it.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Sequence int64 `json:"sequence,omitempty"`

	// pending are the devices at or before cursor that have no result: at most 100, left
	// by a manager that stopped while their messages were not acknowledged. They are in
	// no count, and are served again.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:MaxLength=48
	Pending []string `json:"pending,omitempty"`
}

// DeviceFailure says why a device failed.
type DeviceFailure struct {
	// deviceName is the name of the device.
	// +required
	// +kubebuilder:validation:MaxLength=48
	DeviceName string `json:"deviceName"`

	// reason is one word for a program: DeadlineExceeded, PublishRejected,
	// ShadowTooLarge, ShadowTooDeep or InvalidShadow.
	// +required
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason"`

	// message is a sentence for a person.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Message string `json:"message,omitempty"`
}

// BatchTask runs one operation over all devices of a product whose names match a
// regular expression: it updates the desired state of their shadows, or sends
// each a message, now or at a time within a day. It is the CreateTask call as an
// object. A namespace may have five waiting or processing tasks, unless its
// TaskQuota says otherwise.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=bt,categories=iot
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.taskType`
// +kubebuilder:printcolumn:name="Product",type=string,JSONPath=`.spec.productID`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Matched",type=integer,JSONPath=`.status.devices.matched`
// +kubebuilder:printcolumn:name="Succeeded",type=integer,JSONPath=`.status.devices.succeeded`
// +kubebuilder:printcolumn:name="Failed",type=integer,JSONPath=`.status.devices.failed`
// +kubebuilder:printcolumn:name="Percent",type=integer,JSONPath=`.status.percent`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Acknowledged",type=integer,priority=1,JSONPath=`.status.devices.acknowledged`
// +kubebuilder:printcolumn:name="Scheduled",type=string,priority=1,JSONPath=`.status.scheduleTime`
// +kubebuilder:printcolumn:name="Completed",type=date,priority=1,JSONPath=`.status.completionTime`
// +kubebuilder:printcolumn:name="Filter",type=string,priority=1,JSONPath=`.spec.deviceNameFilter`
// +kubebuilder:selectablefield:JSONPath=`.spec.productID`
// +kubebuilder:selectablefield:JSONPath=`.spec.taskType`
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.status) || !has(oldSelf.status.phase) || (has(self.status) && has(self.status.phase) && (self.status.phase == oldSelf.status.phase || (oldSelf.status.phase == 'Waiting') || (oldSelf.status.phase == 'Processing' && self.status.phase != 'Waiting')))",message="status.phase only moves forward, from Waiting over Processing to Done, Failed or Cancelled, and a finished phase never changes",fieldPath=".status.phase"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.status) || !has(oldSelf.status.checkpoint) || !has(oldSelf.status.checkpoint.epoch) || (has(self.status) && has(self.status.checkpoint) && ((has(self.status.checkpoint.sequence) ? self.status.checkpoint.sequence : 0) > (has(oldSelf.status.checkpoint.sequence) ? oldSelf.status.checkpoint.sequence : 0) || (has(self.status.phase) && has(oldSelf.status.phase) && self.status.phase == oldSelf.status.phase && (has(self.status.devices) && has(self.status.devices.succeeded) ? self.status.devices.succeeded : 0) == (has(oldSelf.status.devices) && has(oldSelf.status.devices.succeeded) ? oldSelf.status.devices.succeeded : 0) && (has(self.status.devices) && has(self.status.devices.failed) ? self.status.devices.failed : 0) == (has(oldSelf.status.devices) && has(oldSelf.status.devices.failed) ? oldSelf.status.devices.failed : 0))))",message="a newer program runs this task: whoever changes its phase, counts or checkpoint must raise status.checkpoint.sequence, which this program does not know; let the newer one run until the task has finished",fieldPath=".status.checkpoint",reason=FieldValueForbidden
type BatchTask struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what is to be done.
	// +required
	Spec BatchTaskSpec `json:"spec"`

	// status is what has become of it; the operator writes it. Its default tells kstatus
	// that nobody has looked at the task yet: without a status it would be Current.
	// +optional
	// +kubebuilder:default={"observedGeneration":-1}
	Status BatchTaskStatus `json:"status,omitzero"`
}

// BatchTaskList is a list of BatchTask.
//
// +kubebuilder:object:root=true
type BatchTaskList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BatchTask `json:"items"`
}

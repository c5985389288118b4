package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// TaskQuotaName is the name of the one TaskQuota of a namespace.
	TaskQuotaName = "default"

	// DefaultMaxActiveTasks is the limit of a namespace that sets none (CreateTask:
	// an account may have five waiting and processing tasks).
	DefaultMaxActiveTasks = 5

	// DefaultMaxProductIDs is how many product IDs a namespace may claim that sets no limit.
	DefaultMaxProductIDs int32 = 100

	// DefaultMaxFinishedTasks is how many finished tasks with a TTL a namespace keeps that
	// sets no limit.
	DefaultMaxFinishedTasks int32 = 1000

	// DefaultMaxFinishedLegacyTasks is how many finished tasks of the HTTP front it keeps.
	DefaultMaxFinishedLegacyTasks int32 = 10000
)

// TaskQuotaSpec sets the limits.
type TaskQuotaSpec struct {
	// maxActiveTasks is how many tasks of the namespace may be waiting or
	// processing at once, 0 to 1000; the default is 5. Lowering it ends no task.
	// +optional
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	MaxActiveTasks int32 `json:"maxActiveTasks"`

	// maxProductIDs is how many product IDs the namespace may claim, 0 to 10000; the
	// default is 100. IDs that are kept for it although their Product is gone count.
	// Lowering it takes none away.
	// +optional
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	MaxProductIDs *int32 `json:"maxProductIDs,omitempty"`

	// maxFinishedTasks is how many finished tasks that have a ttlSecondsAfterFinished are
	// kept, 0 to 100000; the default is 1000. Where there are more, those that finished
	// first are deleted before their time. Tasks without a ttlSecondsAfterFinished are
	// neither counted nor deleted, and those of the HTTP front are counted apart.
	// +optional
	// +kubebuilder:default=1000
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100000
	MaxFinishedTasks *int32 `json:"maxFinishedTasks,omitempty"`

	// maxFinishedLegacyTasks is the same for tasks that the HTTP front has made, which are
	// otherwise kept for 30 days; the default is 10000.
	// +optional
	// +kubebuilder:default=10000
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100000
	MaxFinishedLegacyTasks *int32 `json:"maxFinishedLegacyTasks,omitempty"`
}

// TaskQuotaStatus is the ledger of slots.
type TaskQuotaStatus struct {
	// opened is true once the ledger holds the tasks that were active before it was
	// made; no slot is given away before that.
	// +optional
	Opened bool `json:"opened,omitempty"`

	// active is how many slots are taken.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Active int32 `json:"active"`

	// slots are the places taken, one for each active task. A task is active
	// exactly as long as it holds a slot.
	// +optional
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=1000
	Slots []TaskSlot `json:"slots,omitempty"`
}

// TaskSlot is the place of one task.
type TaskSlot struct {
	// uid is the metadata.uid of the task.
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	UID types.UID `json:"uid"`

	// name is the metadata.name of the task.
	// +required
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`

	// reservedAt is when the slot was taken.
	// +required
	ReservedAt metav1.Time `json:"reservedAt"`

	// bound is true once the task has been seen to exist. A slot that is not bound
	// is freed when its task does not appear within the grace time.
	// +optional
	Bound bool `json:"bound,omitempty"`
}

// TaskQuota limits the active tasks of a namespace and is the ledger of their
// slots. There is one in each namespace, named "default"; the operator makes it
// where it is missing. The API server itself refuses more slots than the limit.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=tq,categories=iot
// +kubebuilder:printcolumn:name="Limit",type=integer,JSONPath=`.spec.maxActiveTasks`
// +kubebuilder:printcolumn:name="Active",type=integer,JSONPath=`.status.active`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="the TaskQuota of a namespace is named \"default\""
// +kubebuilder:validation:XValidation:rule="!has(self.status) || !has(self.status.slots) || size(self.status.slots) <= self.spec.maxActiveTasks || (has(oldSelf.status) && has(oldSelf.status.slots) && size(self.status.slots) <= size(oldSelf.status.slots))",message="status.slots holds more tasks than spec.maxActiveTasks allows",fieldPath=".status.slots"
type TaskQuota struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec sets the limit.
	// +optional
	// +kubebuilder:default={maxActiveTasks: 5}
	Spec TaskQuotaSpec `json:"spec,omitzero"`

	// status is the ledger; the operator writes it.
	// +optional
	Status TaskQuotaStatus `json:"status,omitzero"`
}

// TaskQuotaList is a list of TaskQuota.
//
// +kubebuilder:object:root=true
type TaskQuotaList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []TaskQuota `json:"items"`
}

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DeviceSpec names a device.
type DeviceSpec struct {
	// productID is the spec.productID of the device's Product, which is in the same
	// namespace. Immutable.
	// +required
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9]{1,32}$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: create another device"
	ProductID string `json:"productID"`

	// deviceName is the second level of the device's topics: 1 to 48 letters,
	// digits, ':', '_' and '-'. It may differ from metadata.name, which allows
	// less. Of several devices with one name and product, the oldest counts.
	// Immutable.
	// +required
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9:_-]{1,48}$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: create another device"
	DeviceName string `json:"deviceName"`

	// disabled takes the device out of every task: no filter matches it.
	// +optional
	Disabled bool `json:"disabled,omitempty"`
}

// DeviceStatus holds the device's shadow.
type DeviceStatus struct {
	// shadow is the device's shadow; absent until something is stored in it.
	// +optional
	Shadow *DeviceShadow `json:"shadow,omitempty"`
}

// DeviceShadow is what is known of a device's state and what is wanted of it.
//
// The documents are strings of JSON, not objects: Kubernetes keeps numbers of
// custom resources as 64-bit integers or floats and so would change those that
// are longer, and devices are owed the digits that were written.
type DeviceShadow struct {
	// reported is the state that the device last reported: a JSON object.
	// +optional
	// +kubebuilder:validation:MaxLength=65536
	Reported string `json:"reported,omitempty"`

	// desired is the state that applications want: a JSON object.
	// +optional
	// +kubebuilder:validation:MaxLength=65536
	Desired string `json:"desired,omitempty"`

	// metadata mirrors reported and desired, with the time of the last change, in
	// Unix milliseconds, at each leaf: a JSON object.
	// +optional
	// +kubebuilder:validation:MaxLength=524288
	Metadata string `json:"metadata,omitempty"`

	// version grows by one with each change.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Version int64 `json:"version"`

	// timestamp is the time of the last change, in Unix milliseconds.
	// +optional
	Timestamp int64 `json:"timestamp"`

	// appliedTasks are the UIDs of the last tasks that changed this shadow, the
	// newest last, so that a task that is resumed after a crash does not change it
	// twice.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=64
	AppliedTasks []string `json:"appliedTasks,omitempty"`

	// acknowledged is how many of appliedTasks, from the first, the device has
	// acknowledged: after them it reported all that is desired of it, or cleared the
	// desired state.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=16
	Acknowledged int32 `json:"acknowledged,omitempty"`
}

// Device is one device of a product, with its shadow.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=dev,categories=iot
// +kubebuilder:printcolumn:name="Product",type=string,JSONPath=`.spec.productID`
// +kubebuilder:printcolumn:name="Device",type=string,JSONPath=`.spec.deviceName`
// +kubebuilder:printcolumn:name="Disabled",type=boolean,JSONPath=`.spec.disabled`
// +kubebuilder:printcolumn:name="Version",type=integer,JSONPath=`.status.shadow.version`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Desired",type=string,priority=1,JSONPath=`.status.shadow.desired`
// +kubebuilder:printcolumn:name="Reported",type=string,priority=1,JSONPath=`.status.shadow.reported`
// +kubebuilder:selectablefield:JSONPath=`.spec.productID`
// +kubebuilder:selectablefield:JSONPath=`.spec.deviceName`
type Device struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec names the device.
	// +required
	Spec DeviceSpec `json:"spec"`

	// status holds its shadow.
	// +optional
	Status DeviceStatus `json:"status,omitzero"`
}

// DeviceList is a list of Device.
//
// +kubebuilder:object:root=true
type DeviceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Device `json:"items"`
}

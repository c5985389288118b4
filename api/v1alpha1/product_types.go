package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FleetType says where the devices of a product are kept.
// +kubebuilder:validation:Enum=Kubernetes;Postgres
type FleetType string

const (
	// FleetTypeKubernetes keeps devices as Device objects in the product's namespace:
	// to tens of thousands of them.
	FleetTypeKubernetes FleetType = "Kubernetes"
	// FleetTypePostgres keeps devices in a PostgreSQL database: to millions of them.
	FleetTypePostgres FleetType = "Postgres"
)

// DatabaseURLKey is the key, in the Secret of a Postgres fleet, of the URL of the
// database: postgres://user:password@host:port/database?sslmode=verify-full.
const DatabaseURLKey = "DATABASE_URL"

// ProductSpec describes a product.
type ProductSpec struct {
	// productID is the first level of the topics of this product's devices: 1 to
	// 32 letters and digits. All products share one broker, so an ID belongs to one
	// namespace in the whole cluster, the first that claims it (see ProductIDClaim), and
	// there to the oldest Product. Immutable.
	// +required
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9]{1,32}$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: create another product"
	ProductID string `json:"productID"`

	// topics are the topic names that the product's devices may subscribe to, each
	// the part after {productID}/{deviceName}/. A PublishMessage task must use one
	// of them. Where there are none, any legal name may be used.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:Pattern=`^[a-zA-Z0-9:_-]{1,128}$`
	Topics []string `json:"topics,omitempty"`

	// fleet says where the product's devices and their shadows are kept.
	// +optional
	// +kubebuilder:default={type: Kubernetes}
	Fleet Fleet `json:"fleet,omitzero"`
}

// Fleet says where devices and their shadows are kept.
//
// +kubebuilder:validation:XValidation:rule="(has(self.type) && self.type == 'Postgres') == has(self.postgres)",message="is required when type is Postgres, and must not be there otherwise",fieldPath=".postgres",reason=FieldValueRequired
type Fleet struct {
	// type is Kubernetes (Device objects in the product's namespace, to tens of
	// thousands of them) or Postgres (rows of a database, to millions). Immutable.
	// +optional
	// +kubebuilder:default=Kubernetes
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: create another product"
	Type FleetType `json:"type,omitempty"`

	// postgres says which database it is, when type is Postgres.
	// +optional
	Postgres *PostgresFleet `json:"postgres,omitempty"`
}

// PostgresFleet is a PostgreSQL database. Products of any number of namespaces may
// share one: its rows are kept apart by namespace and product ID.
type PostgresFleet struct {
	// secretRef names the Secret, in the product's namespace, with the key DATABASE_URL.
	// A change of it counts within half a minute.
	// +required
	SecretRef SecretReference `json:"secretRef"`
}

// SecretReference names a Secret in the namespace of the object that refers to it.
type SecretReference struct {
	// name is the name of the Secret.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// ProductStatus is what the operator knows of a product.
type ProductStatus struct {
	// observedGeneration is the metadata.generation that this status was made from;
	// -1 until the operator has looked at the product.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// deviceCount is how many devices the product has, disabled ones included; absent
	// until they have been counted. It follows changes within a few seconds.
	// +optional
	// +kubebuilder:validation:Minimum=0
	DeviceCount *int64 `json:"deviceCount,omitempty"`

	// conditions are Ready and Stalled: a product that is not Ready runs no task.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Product is a kind of device: what its devices' topics begin with, which topics
// they listen to, and where they are kept.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=iot
// +kubebuilder:printcolumn:name="Product",type=string,JSONPath=`.spec.productID`
// +kubebuilder:printcolumn:name="Fleet",type=string,JSONPath=`.spec.fleet.type`
// +kubebuilder:printcolumn:name="Devices",type=integer,JSONPath=`.status.deviceCount`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:selectablefield:JSONPath=`.spec.productID`
type Product struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec describes the product.
	// +required
	Spec ProductSpec `json:"spec"`

	// status is what the operator knows of it. Its default tells kstatus that nobody has
	// looked at the product yet: without a status it would be Current.
	// +optional
	// +kubebuilder:default={"observedGeneration":-1}
	Status ProductStatus `json:"status,omitzero"`
}

// ProductList is a list of Product.
//
// +kubebuilder:object:root=true
type ProductList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Product `json:"items"`
}

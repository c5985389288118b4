package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ProductIDClaimSpec says whose a product ID is.
type ProductIDClaimSpec struct {
	// productID is the ID that is claimed: 1 to 32 letters and digits. Immutable.
	// +required
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9]{1,32}$`
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: delete this claim and create another"
	ProductID string `json:"productID"`

	// namespace is the name of the namespace that the ID belongs to. It need not
	// exist: a namespace that is made again has its IDs at once. Immutable.
	// +required
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="field is immutable: delete this claim and create another"
	Namespace string `json:"namespace"`
}

// ProductIDClaimStatus is what the operator knows of a claim.
type ProductIDClaimStatus struct {
	// unusedSince is since when the namespace has no Product with this ID; absent while
	// it has one. After the operator's --product-id-quarantine the claim is deleted, and
	// a Product of another namespace may claim the ID.
	// +optional
	UnusedSince *metav1.Time `json:"unusedSince,omitempty"`
}

// ProductIDClaim says which namespace a product ID belongs to. The operator makes one
// for the first Product that has the ID, and it outlives the Product by a quarantine.
// Its name is "p" and then the ID with a hyphen and the small letter for each capital:
// "AbC1" is claimed by p-ab-c1; under another name it claims nothing. An administrator may delete a claim that is unused, to
// release the ID before its time, or create one for a namespace whose Product comes
// within that time.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=pidc,categories=iot
// +kubebuilder:printcolumn:name="Product",type=string,JSONPath=`.spec.productID`
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.namespace`
// +kubebuilder:printcolumn:name="Unused",type=date,JSONPath=`.status.unusedSince`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:selectablefield:JSONPath=`.spec.namespace`
type ProductIDClaim struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says whose the ID is.
	// +required
	Spec ProductIDClaimSpec `json:"spec"`

	// status is what the operator knows of the claim.
	// +optional
	Status ProductIDClaimStatus `json:"status,omitzero"`
}

// ProductIDClaimList is a list of ProductIDClaim.
//
// +kubebuilder:object:root=true
type ProductIDClaimList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ProductIDClaim `json:"items"`
}

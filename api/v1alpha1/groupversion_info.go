// Package v1alpha1 holds the types of the API group iot.batchtask.dev: what
// users write and read, and the conditions and reasons that controllers set.
// It holds no behaviour.
//
// +kubebuilder:object:generate=true
// +groupName=iot.batchtask.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of every type in this package.
var GroupVersion = schema.GroupVersion{Group: "iot.batchtask.dev", Version: "v1alpha1"}

// AddToScheme registers the types of this package with a scheme.
var AddToScheme = schemeBuilder.AddToScheme

var schemeBuilder = runtime.NewSchemeBuilder(func(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&BatchTask{}, &BatchTaskList{},
		&Product{}, &ProductList{},
		&Device{}, &DeviceList{},
		&TaskQuota{}, &TaskQuotaList{},
		&ProductIDClaim{}, &ProductIDClaimList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
})

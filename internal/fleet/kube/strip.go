package kube

import "batchtask.dev/operator/api/v1alpha1"

// StripDevice is the transform of the cache for Device objects. It drops what
// only costs memory there: managed fields, annotations, labels and the shadow. So
// a Device that comes from the cache must never be written back whole. It passes
// on anything that is no Device.
func StripDevice(obj any) (any, error) {
	device, ok := obj.(*v1alpha1.Device)
	if !ok {
		return obj, nil
	}
	device.ManagedFields = nil
	device.Annotations = nil
	device.Labels = nil
	device.Status.Shadow = nil
	return device, nil
}

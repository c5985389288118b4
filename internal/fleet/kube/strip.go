package kube

import "batchtask.dev/operator/api/v1alpha1"

// StripDevice is the transform of the cache for Device objects. It drops what
// only costs memory there: managed fields, annotations, labels and the shadow, but
// for the tasks that the device has acknowledged. So a Device that comes from the
// cache must never be written back whole. It passes on anything that is no Device.
func StripDevice(obj any) (any, error) {
	device, ok := obj.(*v1alpha1.Device)
	if !ok {
		return obj, nil
	}
	device.ManagedFields = nil
	device.Annotations = nil
	device.Labels = nil
	device.Status.Shadow = acknowledgedAlone(device.Status.Shadow)
	return device, nil
}

func acknowledgedAlone(s *v1alpha1.DeviceShadow) *v1alpha1.DeviceShadow {
	if s == nil || s.Acknowledged == 0 || int(s.Acknowledged) > len(s.AppliedTasks) {
		return nil
	}
	return &v1alpha1.DeviceShadow{AppliedTasks: s.AppliedTasks[:s.Acknowledged:s.Acknowledged], Acknowledged: s.Acknowledged}
}

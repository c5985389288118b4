package kube

import (
	"context"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// Shadows reads and changes shadows as [Store] does, without watching devices: it
// looks for the device at the API server each time. A field selector has no index
// there, so that costs the API server a look at all devices of the namespace; it is
// for who needs a device now and then. It is safe for concurrent use.
type Shadows struct {
	live Live
}

// NewShadows returns Shadows over an API server.
func NewShadows(live Live) Shadows { return Shadows{live} }

// ReadShadow does what [fleet.Store] says.
func (s Shadows) ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error) {
	device, err := Find(ctx, s.live, p, name)
	if err != nil {
		return fleet.Shadow{}, err
	}
	return stored(device.Status.Shadow), nil
}

// ChangeShadow does what [fleet.Store] says.
func (s Shadows) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	return changeShadow(ctx, s.live, func() (*v1alpha1.Device, error) { return Find(ctx, s.live, p, name) }, change)
}

// Find returns the object that counts for a device: the oldest. The error is
// [fleet.ErrDeviceGone] where there is none.
func Find(ctx context.Context, from client.Reader, p fleet.Product, name string) (*v1alpha1.Device, error) {
	var list v1alpha1.DeviceList
	fields := client.MatchingFields{"spec.productID": p.ProductID, "spec.deviceName": name}
	if err := from.List(ctx, &list, client.InNamespace(p.Namespace), fields); err != nil {
		return nil, fmt.Errorf("looking for device %s in namespace %s: %w", name, p.Namespace, err)
	}
	if len(list.Items) == 0 {
		return nil, fleet.ErrDeviceGone
	}
	oldest := slices.MinFunc(list.Items, func(a, b v1alpha1.Device) int {
		if older(entryOf(&a), entryOf(&b)) {
			return -1
		}
		return 1
	})
	return &oldest, nil
}

func entryOf(device *v1alpha1.Device) *entry {
	return &entry{uid: device.UID, created: device.CreationTimestamp.Unix()}
}

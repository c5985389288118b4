package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
	"batchtask.dev/operator/internal/shadow"
)

// FieldOwner owns the fields of Device objects that an import wrote.
const FieldOwner = "batchtask-fleet"

// ObjectName returns the name of the Device object of a device: always the same, so
// that an import that is made again, or twice at the same time, makes one object. It
// is the name of the device in the letters that objects may have, and ten digits that
// tell apart what looks the same then and devices of other products.
func ObjectName(productID, deviceName string) string {
	readable := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(deviceName)), "-")
	sum := sha256.Sum256([]byte(productID + "/" + deviceName))
	digits := hex.EncodeToString(sum[:5])
	if readable == "" {
		return "device-" + digits
	}
	return readable + "-" + digits
}

// Import implements [Fleet]. A device that is there as it is given costs no request.
func (f *InKubernetes) Import(ctx context.Context, devices []devicefile.Device, refuse func(int, error)) (Summary, error) {
	if err := f.list(ctx); err != nil {
		return Summary{}, err
	}
	var (
		mu    sync.Mutex
		sum   Summary
		group errgroup.Group
	)
	group.SetLimit(kubeParallel)
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for i, d := range devices {
		mu.Lock()
		o, exists := f.known[d.Name]
		same := exists && o.covers(d)
		if same {
			sum.Unchanged++
		}
		mu.Unlock()
		if same {
			continue
		}
		if running.Err() != nil {
			break
		}
		group.Go(func() error {
			is, err := f.write(running, d, o, exists)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case refused(err):
				refuse(i, fmt.Errorf("device %q: %w", d.Name, err))
				return nil
			case err != nil:
				cancel(err) // the others need not begin
				return fmt.Errorf("write device %q: %w", d.Name, err)
			case exists:
				sum.Updated++
			default:
				sum.Added++
			}
			f.known[d.Name] = is
			return nil
		})
	}
	err := group.Wait()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return sum, err
}

// covers reports whether an import of d leaves o as it is.
func (o object) covers(d devicefile.Device) bool {
	return o.disabled == d.Disabled && o.version >= d.Shadow.Version
}

// Preview implements [Fleet].
func (f *InKubernetes) Preview(ctx context.Context, devices []devicefile.Device) (sum Summary, err error) {
	if err := f.list(ctx); err != nil {
		return sum, err
	}
	for _, d := range devices {
		switch o, exists := f.known[d.Name]; {
		case !exists:
			sum.Added++
		case o.covers(d):
			sum.Unchanged++
		default:
			sum.Updated++
		}
	}
	return sum, nil
}

// write makes a device what it is to be, and returns it as it is then.
func (f *InKubernetes) write(ctx context.Context, d devicefile.Device, o object, exists bool) (object, error) {
	if !exists {
		o = object{name: ObjectName(f.product.ProductID, d.Name)}
	}
	if !exists || o.disabled != d.Disabled {
		if err := f.apply(ctx, d, o.name); err != nil {
			return o, err
		}
		o.disabled = d.Disabled
	}
	if d.Shadow.Version <= o.version {
		return o, nil
	}
	if err := f.writeShadow(ctx, o.name, d.Shadow); err != nil {
		return o, err
	}
	o.version, o.changed = d.Shadow.Version, d.Shadow.Timestamp
	return o, nil
}

// apply makes or changes an object. It names all fields, since what is left out stays
// as somebody else wrote it.
func (f *InKubernetes) apply(ctx context.Context, d devicefile.Device, name string) error {
	device := &unstructured.Unstructured{Object: map[string]any{
		"spec": map[string]any{"productID": f.product.ProductID, "deviceName": d.Name, "disabled": d.Disabled},
	}}
	device.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("Device"))
	device.SetNamespace(f.product.Namespace)
	device.SetName(name)
	return f.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(device), client.FieldOwner(FieldOwner), client.ForceOwnership)
}

// writeShadow replaces a shadow, unless the one that is there has become as new
// meanwhile: devices and tasks write it too.
func (f *InKubernetes) writeShadow(ctx context.Context, name string, s shadow.Stored) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		var device v1alpha1.Device
		if err := f.client.Get(ctx, client.ObjectKey{Namespace: f.product.Namespace, Name: name}, &device); err != nil {
			return err
		}
		if was := device.Status.Shadow; was != nil && was.Version >= s.Version {
			return nil
		}
		before := device.DeepCopy()
		device.Status.Shadow = &v1alpha1.DeviceShadow{
			Reported: s.Reported, Desired: s.Desired, Metadata: s.Metadata, Version: s.Version, Timestamp: s.Timestamp,
		}
		return f.client.Status().Patch(ctx, &device, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	})
}

package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
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

// outcome is what became of a device that was written.
type outcome int

const (
	unchanged outcome = iota // somebody else was faster
	added
	updated
)

func (s *Summary) count(what outcome) {
	switch what {
	case unchanged:
		s.Unchanged++
	case added:
		s.Added++
	case updated:
		s.Updated++
	}
}

// Import implements [Fleet]. A device that is there as it is given costs no request. What
// is counted is what the API server says to have done: others may add, change and delete
// the same devices meanwhile.
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
			is, what, err := f.write(running, d, o, exists)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case refused(err):
				refuse(i, fmt.Errorf("device %q: %w", d.Name, err))
				return nil
			case err != nil:
				cancel(err) // the others need not begin
				return fmt.Errorf("write device %q: %w", d.Name, err)
			}
			sum.count(what)
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

// writeAttempts is how often a device is read and written that others write too.
const writeAttempts = 8

// write makes a device what it is to be, and returns it as it is then. Each attempt looks
// at the object as it is, and writes on the condition that it still is: it may have been
// changed, deleted or made by somebody else since the devices were listed.
func (f *InKubernetes) write(ctx context.Context, d devicefile.Device, o object, exists bool) (is object, what outcome, err error) {
	if !exists {
		o = object{name: ObjectName(f.product.ProductID, d.Name)}
	}
	device := &v1alpha1.Device{}
	for range writeAttempts {
		if exists {
			err = f.client.Get(ctx, client.ObjectKey{Namespace: f.product.Namespace, Name: o.name}, device)
		} else if device, err = f.create(ctx, d, o.name); err == nil {
			what = added
		}
		var changed bool
		if err == nil {
			changed, err = f.change(ctx, d, device)
		}
		if changed && what == unchanged {
			what = updated
		}
		switch {
		case err == nil:
			return objectOf(device), what, nil
		case apierrors.IsNotFound(err): // deleted meanwhile: it is made anew
			o, exists, what = object{name: ObjectName(f.product.ProductID, d.Name)}, false, unchanged
		case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err): // somebody else was faster
			exists = true
		default:
			if what == added {
				err = fmt.Errorf("it was added without its shadow: %w", err)
			}
			return o, what, err
		}
	}
	return o, what, err
}

// create makes the object of a device, without its shadow.
func (f *InKubernetes) create(ctx context.Context, d devicefile.Device, name string) (*v1alpha1.Device, error) {
	device := &v1alpha1.Device{
		ObjectMeta: metav1.ObjectMeta{Namespace: f.product.Namespace, Name: name},
		Spec:       v1alpha1.DeviceSpec{ProductID: f.product.ProductID, DeviceName: d.Name, Disabled: d.Disabled},
	}
	return device, f.client.Create(ctx, device, client.FieldOwner(FieldOwner))
}

// change writes what differs of an object, which was just read, and reports whether
// anything was written. The error is a conflict where somebody else has written since.
func (f *InKubernetes) change(ctx context.Context, d devicefile.Device, device *v1alpha1.Device) (changed bool, err error) {
	if spec := device.Spec; spec.ProductID != f.product.ProductID || spec.DeviceName != d.Name {
		return false, apierrors.NewBadRequest(fmt.Sprintf("the object %q is another device: its spec.productID is %q and its spec.deviceName %q",
			device.Name, spec.ProductID, spec.DeviceName))
	}
	if device.Spec.Disabled != d.Disabled {
		before := device.DeepCopy()
		device.Spec.Disabled = d.Disabled
		if err := f.client.Patch(ctx, device, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), client.FieldOwner(FieldOwner)); err != nil {
			return false, err
		}
		changed = true
	}
	was, given := device.Status.Shadow, d.Shadow
	if was == nil {
		was = &v1alpha1.DeviceShadow{}
	}
	if was.Version >= given.Version {
		return changed, nil
	}
	before := device.DeepCopy()
	// It is the same device, which a task that goes on must not change again, and an import
	// is not the word of the device: what tasks it remembers and has acknowledged stays.
	device.Status.Shadow = &v1alpha1.DeviceShadow{
		Reported: given.Reported, Desired: given.Desired, Metadata: given.Metadata, Version: given.Version, Timestamp: given.Timestamp,
		AppliedTasks: was.AppliedTasks, Acknowledged: was.Acknowledged,
	}
	err = f.client.Status().Patch(ctx, device, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), client.FieldOwner(FieldOwner))
	return changed || err == nil, err
}

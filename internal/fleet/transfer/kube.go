package transfer

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/shadow"
)

const (
	// kubeBatch is how many devices are given at once: the work of about a second.
	kubeBatch = 256
	// kubeParallel is how many requests are under way at once.
	kubeParallel = 16
	// listPage is how many objects are listed at once.
	listPage = 500
)

// InKubernetes is a [Fleet] of devicefile.Device objects. It is for one goroutine.
type InKubernetes struct {
	client  client.Client
	product fleet.Product
	known   map[string]object // by device name; nil until they were listed
}

var _ Fleet = (*InKubernetes)(nil)

// NewInKubernetes returns the devices of a product. The client should not throttle.
func NewInKubernetes(c client.Client, p fleet.Product) *InKubernetes {
	return &InKubernetes{client: c, product: p}
}

// object is what is kept in memory of each Device.
type object struct {
	name     string
	disabled bool
	version  int64
	changed  int64
	uid      types.UID
	created  time.Time
}

func objectOf(d *v1alpha1.Device) object {
	o := object{name: d.Name, disabled: d.Spec.Disabled, uid: d.UID, created: d.CreationTimestamp.Time}
	if s := d.Status.Shadow; s != nil {
		o.version, o.changed = s.Version, s.Timestamp
	}
	return o
}

// older reports whether o counts, of two objects for one device.
func (o object) older(other object) bool {
	return cmp.Or(o.created.Compare(other.created), cmp.Compare(o.uid, other.uid)) < 0
}

// Batch implements [Fleet].
func (*InKubernetes) Batch() int { return kubeBatch }

// list fills known, once.
func (f *InKubernetes) list(ctx context.Context) error {
	if f.known != nil {
		return nil
	}
	known := map[string]object{}
	next := ""
	for {
		var page v1alpha1.DeviceList
		err := f.client.List(ctx, &page, client.InNamespace(f.product.Namespace), client.MatchingFields{product.FieldProductID: f.product.ProductID},
			client.Limit(listPage), client.Continue(next))
		if apierrors.IsResourceExpired(err) && next != "" { // the API server has forgotten where that was
			next, known = "", map[string]object{}
			continue
		}
		if err != nil {
			return fmt.Errorf("list the devices of namespace %q: %w", f.product.Namespace, err)
		}
		for i := range page.Items {
			d := &page.Items[i]
			found := objectOf(d)
			if before, twice := known[d.Spec.DeviceName]; !twice || found.older(before) {
				known[d.Spec.DeviceName] = found
			}
		}
		if next = page.Continue; next == "" {
			f.known = known
			return nil
		}
	}
}

// Export implements [Fleet]. Objects have another order than devices, so the names are
// held in memory, and the shadows are read page by page.
func (f *InKubernetes) Export(ctx context.Context, shadows bool) iter.Seq2[devicefile.Device, error] {
	return func(yield func(devicefile.Device, error) bool) {
		if err := f.list(ctx); err != nil {
			yield(devicefile.Device{}, err)
			return
		}
		names := make([]string, 0, len(f.known))
		for name := range f.known {
			names = append(names, name)
		}
		slices.Sort(names)
		for page := range slices.Chunk(names, kubeBatch) {
			devices, err := f.page(ctx, page, shadows)
			if err != nil {
				yield(devicefile.Device{}, err)
				return
			}
			for _, d := range devices {
				if !yield(d, nil) {
					return
				}
			}
		}
	}
}

// page returns the devices of these names that still exist.
func (f *InKubernetes) page(ctx context.Context, names []string, shadows bool) ([]devicefile.Device, error) {
	devices := make([]devicefile.Device, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(kubeParallel)
	for i, name := range names {
		o := f.known[name]
		if !shadows {
			devices[i] = devicefile.Device{Name: name, Disabled: o.disabled, Shadow: shadow.Stored{Version: o.version, Timestamp: o.changed}}
			continue
		}
		group.Go(func() error {
			var found v1alpha1.Device
			err := f.client.Get(ctx, client.ObjectKey{Namespace: f.product.Namespace, Name: o.name}, &found)
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("read device %q: %w", name, err)
			}
			// One that was made anew since may be of another device.
			if found.Spec.ProductID == f.product.ProductID && found.Spec.DeviceName == name {
				devices[i] = deviceOf(&found)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(devices, func(d devicefile.Device) bool { return d.Name == "" }), nil
}

// Get implements [Fleet].
func (f *InKubernetes) Get(ctx context.Context, name string) (devicefile.Device, error) {
	if devicefile.CheckName(name) != nil { // a field selector does not take every text
		return devicefile.Device{}, fleet.ErrDeviceGone
	}
	found, err := kube.Find(ctx, f.client, f.product, name)
	if err != nil {
		return devicefile.Device{}, err
	}
	return deviceOf(found), nil
}

func deviceOf(d *v1alpha1.Device) devicefile.Device {
	found := devicefile.Device{Name: d.Spec.DeviceName, Disabled: d.Spec.Disabled}
	if s := d.Status.Shadow; s != nil {
		found.Shadow = shadow.Stored{Reported: s.Reported, Desired: s.Desired, Metadata: s.Metadata, Version: s.Version, Timestamp: s.Timestamp}
	}
	return found
}

// refused reports whether the API server has looked at a device and refuses it alone;
// all else would happen to the others too.
func refused(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsRequestEntityTooLargeError(err)
}

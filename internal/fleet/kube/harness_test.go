package kube

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestConformance(t *testing.T) {
	fleettest.Run(t, func(t *testing.T) fleettest.Harness { return newHarness(t) })
}

// harness is a store over the real API server, with a cache of its own.
type harness struct {
	env   *testenv.Env
	store *Store
	cache cache.Cache
	stop  context.CancelFunc // ends the watch; the cache is then frozen
}

func newHarness(t testing.TB, options ...Option) *harness {
	t.Helper()
	env := testenv.Start(t)
	devices, err := cache.New(env.Config, cache.Options{
		Scheme:   testenv.Scheme(),
		ByObject: map[client.Object]cache.ByObject{&v1alpha1.Device{}: {Transform: StripDevice}},
	})
	if err != nil {
		t.Fatalf("making the cache: %v", err)
	}
	store, err := New(t.Context(), devices, env.Client, append([]Option{WithClock(patient{})}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- devices.Start(ctx) }()
	var once sync.Once
	stopAndWait := func() {
		once.Do(func() {
			stop()
			if err := <-stopped; err != nil {
				t.Errorf("running the cache: %v", err)
			}
		})
	}
	t.Cleanup(stopAndWait)
	return &harness{env: env, store: store, cache: devices, stop: stopAndWait}
}

// patient is a clock by which Sync waits for a minute before it gives up: on a busy
// machine a watch that works can be ten seconds behind, as after some refused attempts.
type patient struct{ clock.RealClock }

func (c patient) NewTimer(d time.Duration) clock.Timer {
	if d == syncTimeout {
		d = time.Minute
	}
	return c.RealClock.NewTimer(d)
}

func (h *harness) Store() fleet.Store { return h.store }

func (h *harness) Product(t testing.TB) fleet.Product {
	return fleet.Product{Namespace: h.env.Namespace(t), ProductID: "ABCDE12345"}
}

func (h *harness) Create(t testing.TB, p fleet.Product, devices ...fleettest.Device) {
	t.Helper()
	var running sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, d := range devices {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			if err := h.create(t.Context(), p, d); err != nil {
				t.Errorf("making device %s: %v", d.Name, err)
			}
		})
	}
	running.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func (h *harness) create(ctx context.Context, p fleet.Product, d fleettest.Device) error {
	device := &v1alpha1.Device{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "dev-", Namespace: p.Namespace,
			Labels: map[string]string{"a": "label"}, Annotations: map[string]string{"an": "annotation"},
		},
		Spec: v1alpha1.DeviceSpec{ProductID: p.ProductID, DeviceName: d.Name, Disabled: d.Disabled},
	}
	if err := h.env.Client.Create(ctx, device); err != nil {
		return err
	}
	if d.Shadow.Version == 0 {
		return nil
	}
	device.Status.Shadow = written(d.Shadow)
	return h.env.Client.Status().Update(ctx, device)
}

func (h *harness) Duplicate(t testing.TB, p fleet.Product, name string) {
	t.Helper()
	h.Create(t, p, fleettest.Device{Name: name})
}

// find returns the object that counts, by a live read.
func (h *harness) find(t testing.TB, p fleet.Product, name string) *v1alpha1.Device {
	t.Helper()
	list := &v1alpha1.DeviceList{}
	selector := client.MatchingFields{"spec.productID": p.ProductID, "spec.deviceName": name}
	if err := h.env.Client.List(t.Context(), list, client.InNamespace(p.Namespace), selector); err != nil {
		t.Fatalf("looking for device %s: %v", name, err)
	}
	if len(list.Items) == 0 {
		t.Fatalf("device %s does not exist", name)
	}
	oldest := slices.MinFunc(list.Items, func(a, b v1alpha1.Device) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	return &oldest
}

func (h *harness) Delete(t testing.TB, p fleet.Product, name string) {
	t.Helper()
	if err := h.env.Client.Delete(t.Context(), h.find(t, p, name)); err != nil {
		t.Fatalf("deleting device %s: %v", name, err)
	}
}

func (h *harness) SetDisabled(t testing.TB, p fleet.Product, name string, disabled bool) {
	t.Helper()
	device := h.find(t, p, name)
	device.Spec.Disabled = disabled
	if err := h.env.Client.Update(t.Context(), device); err != nil {
		t.Fatalf("setting device %s to disabled=%v: %v", name, disabled, err)
	}
}

func (h *harness) Report(t testing.TB, p fleet.Product, name, reported string) {
	t.Helper()
	backoff := retry.DefaultRetry // waits always as long, and not five times as long each time
	backoff.Steps = 100
	err := retry.RetryOnConflict(backoff, func() error {
		device := h.find(t, p, name)
		if device.Status.Shadow == nil {
			device.Status.Shadow = &v1alpha1.DeviceShadow{}
		}
		device.Status.Shadow.Reported = reported
		device.Status.Shadow.Version++
		device.Status.Shadow.Timestamp = time.Now().UnixMilli()
		return h.env.Client.Status().Update(t.Context(), device)
	})
	if err != nil {
		t.Fatalf("reporting for device %s: %v", name, err)
	}
}

func (h *harness) Shadow(t testing.TB, p fleet.Product, name string) fleet.Shadow {
	t.Helper()
	return stored(h.find(t, p, name).Status.Shadow)
}

func numbered(n int) []fleettest.Device {
	devices := make([]fleettest.Device, n)
	for i := range devices {
		devices[i].Name = fmt.Sprintf("device-%06d", i)
	}
	return devices
}

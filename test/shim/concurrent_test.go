package shim_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/test/system"
)

// Callers and tasks that write one shadow lose nothing of each other's, and each
// change raises the version by one.
func TestConcurrentUpdates(t *testing.T) {
	const callers, calls, tasks = 6, 5, 8
	s := system.Run(t)
	broker := mqtttest.StartMosquitto(t)
	f := startFront(t, s, settings{broker: broker.URL()})
	c := f.newCaller(t)
	device := c.newDevice(t, "door-1", nil)
	store := newStore(t, s)
	of := fleet.Product{Namespace: c.namespace, ProductID: c.productID}
	if err := store.Sync(t.Context(), c.namespace); err != nil {
		t.Fatal(err)
	}

	var writers sync.WaitGroup
	answered := make(chan float64, callers*calls)
	wanted := shadow.Object{}
	for i := range callers {
		wanted[fmt.Sprint("call-", i)] = fmt.Sprint(calls - 1)
		writers.Go(func() {
			for n := range calls {
				got := c.v2(t, "POST", c.about("UpdateDeviceShadow", "door-1", map[string]string{"state": fmt.Sprintf(`{"desired":{"call-%d":"%d"}}`, i, n)}))
				told, ok := got["data"].(map[string]any)
				if !ok || got["code"] != 0.0 {
					t.Errorf("UpdateDeviceShadow is answered %v", got)
					return
				}
				version, _ := told["payload"].(map[string]any)["version"].(float64)
				answered <- version
			}
		})
	}
	for i := range tasks {
		name := fmt.Sprint("task-", i)
		wanted[name] = "yes"
		writers.Go(func() {
			update := fleet.DesiredUpdate{TaskUID: name, Patch: shadow.Object{name: "yes"}, Now: time.Now()}
			for {
				// A passing error is tried again, as the executor does.
				if err := store.ApplyDesired(t.Context(), of, update, []string{"door-1"})[0].Err; err == nil || t.Context().Err() != nil {
					return
				}
			}
		})
	}
	writers.Wait()
	close(answered)

	if err := f.Env.Client.Get(t.Context(), keyOf(device), device); err != nil {
		t.Fatal(err)
	}
	got := device.Status.Shadow
	if got.Version != callers*calls+tasks || len(got.AppliedTasks) != tasks {
		t.Errorf("version %d of %d tasks, want %d of %d", got.Version, len(got.AppliedTasks), callers*calls+tasks, tasks)
	}
	doc, err := shadow.Parse(shadow.Stored{Desired: got.Desired})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wanted, doc.Desired); diff != "" {
		t.Errorf("desired (-want +got):\n%s", diff)
	}
	versions := map[float64]bool{}
	for version := range answered {
		if versions[version] {
			t.Errorf("two callers were told version %v", version)
		}
		versions[version] = true
	}
	if len(versions) != callers*calls {
		t.Errorf("%d calls were answered, want %d", len(versions), callers*calls)
	}
}

// newStore makes a store as the manager has it.
func newStore(t *testing.T, s *system.System) *kube.Store {
	t.Helper()
	devices, err := cache.New(s.Env.Config, cache.Options{Scheme: testenv.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	store, err := kube.New(ctx, devices, s.Env.Client)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = devices.Start(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return store
}

package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/testenv"
)

var update = fleet.DesiredUpdate{TaskUID: "task", Patch: shadow.Object{"state": "open"}, Now: time.UnixMilli(1700000000123)}

func TestNotReadyBeforeTheFirstList(t *testing.T) {
	env := testenv.Start(t)
	devices, err := cache.New(env.Config, cache.Options{Scheme: testenv.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	store, err := New(t.Context(), devices, env.Client) // and never started
	if err != nil {
		t.Fatal(err)
	}
	p := fleet.Product{Namespace: "default", ProductID: "ABCDE12345"}
	_, countErr := store.Count(t.Context(), fleet.Query{Product: p})
	_, totalErr := store.Total(t.Context(), p)
	_, _, scanErr := store.Scan(t.Context(), fleet.Query{Product: p}, 1)
	applyErr := store.ApplyDesired(t.Context(), p, update, []string{"a"})[0].Err
	_, readErr := store.ReadShadow(t.Context(), p, "a")
	changeErr := store.ChangeShadow(t.Context(), p, "a", func(s fleet.Shadow) (fleet.Shadow, error) { return s, nil })
	for call, err := range map[string]error{
		"Count": countErr, "Total": totalErr, "Scan": scanErr, "ApplyDesired": applyErr, "ReadShadow": readErr, "ChangeShadow": changeErr,
	} {
		if !errors.Is(err, fleet.ErrNotReady) {
			t.Errorf("%s: error %v, want ErrNotReady", call, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.Sync(ctx, "default"); !errors.Is(err, context.Canceled) {
		t.Errorf("Sync: error %v, want that of the context", err)
	}
}

// A watch that has stopped must not let a task run over yesterday's devices.
func TestSyncGivesUpOnABrokenWatch(t *testing.T) {
	tests := map[string]func(t *testing.T, h *harness, p fleet.Product){
		"a device that was created is missing": func(t *testing.T, h *harness, p fleet.Product) {
			h.Create(t, p, fleettest.Device{Name: "new"})
		},
		"as many deleted as created": func(t *testing.T, h *harness, p fleet.Product) {
			h.Delete(t, p, "device-000001")
			h.Create(t, p, fleettest.Device{Name: "new"})
		},
		"a device was disabled": func(t *testing.T, h *harness, p fleet.Product) {
			h.SetDisabled(t, p, "device-000001", true)
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			clock := testingclock.NewFakeClock(time.Unix(1700000000, 0))
			h := newHarness(t, WithClock(clock))
			p := h.Product(t)
			h.Create(t, p, numbered(3)...)
			if err := h.store.Sync(t.Context(), p.Namespace); err != nil {
				t.Fatalf("while the watch runs: %v", err)
			}
			h.stop()
			if err := h.store.Sync(t.Context(), p.Namespace); err != nil {
				t.Fatalf("nothing has changed: %v", err)
			}
			change(t, h, p)

			result := make(chan error, 1)
			go func() { result <- h.store.Sync(t.Context(), p.Namespace) }()
			for range 4 { // three times it looks again
				waitUntil(t, "Sync waits", func() bool { return clock.Waiters() >= 2 })
				select {
				case err := <-result:
					t.Fatalf("Sync returned early, with error %v", err)
				default:
				}
				clock.Step(syncRelist)
			}
			select {
			case err := <-result:
				if !errors.Is(err, errBehind) {
					t.Errorf("error %v, want errBehind", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("Sync still waits after its time")
			}
		})
	}
}

// Sync must end in a large namespace whose devices change all the time.
func TestSyncUnderChange(t *testing.T) {
	h := newHarness(t)
	p := h.Product(t)
	h.Create(t, p, numbered(syncPage+50)...)
	var enough atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !enough.Load() {
			h.Create(t, p, fleettest.Device{Name: "x"})
			h.Delete(t, p, "x")
		}
	}()
	for range 20 {
		if err := h.store.Sync(t.Context(), p.Namespace); err != nil {
			t.Errorf("Sync: %v", err)
		}
	}
	enough.Store(true)
	<-done
}

// The status has what this version of the API does not know: an update must keep it.
func TestApplyKeepsTheRestOfTheStatus(t *testing.T) {
	keepUnknownStatus(t, testenv.Start(t))
	h := newHarness(t) // after that: with the schema the API server ends all watches
	p := h.Product(t)
	h.Create(t, p, fleettest.Device{Name: "a", Shadow: fleet.Shadow{Stored: shadow.Stored{Reported: `{"r":1}`, Version: 1}}})
	if err := h.store.Sync(t.Context(), p.Namespace); err != nil {
		t.Fatal(err)
	}
	key := client.ObjectKeyFromObject(h.find(t, p, "a"))
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("Device"))
	status := []byte(`{"status":{"later":{"x":"y"},"shadow":{"alsoLater":"z"}}}`)
	object.SetName(key.Name)
	object.SetNamespace(key.Namespace)
	if err := h.env.Client.Status().Patch(t.Context(), object, client.RawPatch(types.MergePatchType, status)); err != nil {
		t.Fatal(err)
	}
	if result := h.store.ApplyDesired(t.Context(), p, update, []string{"a"})[0]; result.Err != nil {
		t.Fatal(result.Err)
	}
	if err := h.env.Client.Get(t.Context(), key, object); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"later": map[string]any{"x": "y"},
		"shadow": map[string]any{
			"alsoLater":    "z",
			"reported":     `{"r":1}`,
			"desired":      `{"state":"open"}`,
			"metadata":     `{"desired":{"state":{"timestamp":1700000000123}}}`,
			"version":      int64(2),
			"timestamp":    int64(1700000000123),
			"appliedTasks": []any{"task"},
		},
	}
	if diff := cmp.Diff(want, object.Object["status"]); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if object.GetLabels()["a"] != "label" || object.GetAnnotations()["an"] != "annotation" {
		t.Errorf("labels %v, annotations %v: lost", object.GetLabels(), object.GetAnnotations())
	}
}

// keepUnknownStatus makes the API server keep fields of the status that the
// schema does not have, as a later version of the schema would, until the test ends.
func keepUnknownStatus(t *testing.T, env *testenv.Env) {
	t.Helper()
	const name = "devices.iot.batchtask.dev"
	scheme := testenv.Scheme()
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(env.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	set := func(ctx context.Context, value string) error {
		crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name}}
		status := "/spec/versions/0/schema/openAPIV3Schema/properties/status"
		const field = "/x-kubernetes-preserve-unknown-fields"
		patch := `[{"op":"` + value + `","path":"` + status + field + `","value":true},
			{"op":"` + value + `","path":"` + status + "/properties/shadow" + field + `","value":true}]`
		return c.Patch(ctx, crd, client.RawPatch(types.JSONPatchType, []byte(patch)))
	}
	// The API server takes a moment to serve another schema.
	served := func(keeps bool) {
		t.Helper()
		ctx := context.WithoutCancel(t.Context())
		waitUntil(t, fmt.Sprintf("unknown fields are kept: %v", keeps), func() bool {
			object := &unstructured.Unstructured{Object: map[string]any{
				"spec":   map[string]any{"productID": "SCHEMA", "deviceName": "schema"},
				"status": map[string]any{},
			}}
			object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("Device"))
			object.SetNamespace("default")
			object.SetGenerateName("schema-")
			if err := c.Create(ctx, object); err != nil {
				return false
			}
			status := []byte(`{"status":{"later":"x"}}`)
			err := c.Status().Patch(ctx, object, client.RawPatch(types.MergePatchType, status))
			_, kept, _ := unstructured.NestedString(object.Object, "status", "later")
			return err == nil && kept == keeps
		})
	}
	if err := set(t.Context(), "add"); err != nil {
		t.Fatalf("changing the schema: %v", err)
	}
	t.Cleanup(func() {
		if err := set(context.Background(), "remove"); err != nil {
			t.Errorf("changing the schema back: %v", err)
		}
		served(false) // else the watch of the next test is ended in its middle
	})
	served(true)
}

// What the API server answers is passing, unless it finds the content invalid.
func TestApplyErrors(t *testing.T) {
	h := newHarness(t)
	p := h.Product(t)
	h.Create(t, p, fleettest.Device{Name: "a"})
	if err := h.store.Sync(t.Context(), p.Namespace); err != nil {
		t.Fatal(err)
	}
	resource := v1alpha1.GroupVersion.WithResource("devices").GroupResource()
	conflict := apierrors.NewConflict(resource, "a", errors.New("changed"))
	secret := apierrors.NewInvalid(v1alpha1.GroupVersion.WithKind("Device").GroupKind(), "a", nil)
	secret.ErrStatus.Message = `Invalid value: "secret"`
	secret.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseType("FieldValueTooLong"), Field: "status.shadow.metadata", Message: "secret"}}
	tests := map[string]struct {
		err        error
		fails      int // how many writes fail
		wantErr    error
		wantWrites int
		wantReason string
	}{
		"conflicts, then not":  {err: conflict, fails: conflicts.Steps - 1, wantWrites: conflicts.Steps},
		"nothing but conflict": {err: conflict, fails: 100, wantErr: fleet.ErrConflict, wantWrites: conflicts.Steps},
		"deleted":              {err: apierrors.NewNotFound(resource, "a"), fails: 100, wantErr: fleet.ErrConflict, wantWrites: 1},
		"server down":          {err: apierrors.NewServiceUnavailable("down"), fails: 100, wantErr: apierrors.NewServiceUnavailable("down"), wantWrites: 1},
		"invalid":              {err: secret, fails: 100, wantWrites: 1, wantReason: v1alpha1.ReasonInvalidShadow},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			writes := 0
			faulty := interceptor.NewClient(h.env.Client, interceptor.Funcs{
				SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
					if writes++; writes <= tt.fails {
						return tt.err
					}
					return c.SubResource(sub).Patch(ctx, o, patch, options...)
				},
			})
			store := &Store{index: h.store.index, synced: h.store.synced, live: faulty, slots: make(chan struct{}, 1)}
			u := update
			u.TaskUID = name
			err := store.ApplyDesired(t.Context(), p, u, []string{"a"})[0].Err
			if deviceErr, ok := errors.AsType[*fleet.DeviceError](err); ok {
				if deviceErr.Reason != tt.wantReason || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "status.shadow.metadata") {
					t.Errorf("device error %v, want reason %q, the field and no value", err, tt.wantReason)
				}
			} else if tt.wantReason != "" || (err == nil) != (tt.wantErr == nil) || errors.Is(err, fleet.ErrConflict) != (tt.wantErr == fleet.ErrConflict) || //nolint:errorlint // which of the table
				apierrors.ReasonForError(err) != apierrors.ReasonForError(tt.wantErr) {
				t.Errorf("error %v, want %v", err, tt.wantErr)
			}
			if writes != tt.wantWrites {
				t.Errorf("%d writes, want %d", writes, tt.wantWrites)
			}
		})
	}
}

func TestStripDevice(t *testing.T) {
	meta := metav1.ObjectMeta{Name: "n", Namespace: "ns", UID: "u", ResourceVersion: "5", CreationTimestamp: metav1.Unix(7, 0)}
	full := &v1alpha1.Device{
		ObjectMeta: *meta.DeepCopy(),
		Spec:       v1alpha1.DeviceSpec{ProductID: "P", DeviceName: "d", Disabled: true},
		Status:     v1alpha1.DeviceStatus{Shadow: &v1alpha1.DeviceShadow{Desired: "{}"}},
	}
	full.Labels = map[string]string{"a": "b"}
	full.Annotations = map[string]string{"a": "b"}
	full.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}}
	want := &v1alpha1.Device{ObjectMeta: meta, Spec: full.Spec}
	for range 2 { // an informer may call it again for an object it has
		got, err := StripDevice(full)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("error %v, device (-want +got):\n%s", err, diff)
		}
	}
	tombstone := toolscache.DeletedFinalStateUnknown{Key: "ns/n"}
	if got, err := StripDevice(tombstone); got != any(tombstone) || err != nil {
		t.Errorf("a tombstone became %v (error %v)", got, err)
	}
}

// The cache holds what StripDevice leaves.
func TestCacheIsStripped(t *testing.T) {
	h := newHarness(t)
	p := h.Product(t)
	h.Create(t, p, fleettest.Device{Name: "a", Shadow: fleet.Shadow{Stored: shadow.Stored{Reported: `{"r":1}`, Version: 1}}})
	if err := h.store.Sync(t.Context(), p.Namespace); err != nil {
		t.Fatal(err)
	}
	list := &v1alpha1.DeviceList{}
	if err := h.cache.List(t.Context(), list, client.InNamespace(p.Namespace)); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 || list.Items[0].ManagedFields != nil || list.Items[0].Labels != nil || list.Items[0].Status.Shadow != nil {
		t.Errorf("cached devices %+v, want one, stripped", list.Items)
	}
}

// waitUntil waits for a condition, with a deadline.
func waitUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

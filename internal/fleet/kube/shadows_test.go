package kube

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/shadow"
)

// unwatched is a store whose shadows are read and changed without its index.
type unwatched struct {
	*Store
	shadows Shadows
}

func (u unwatched) ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error) {
	return u.shadows.ReadShadow(ctx, p, name)
}

func (u unwatched) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	return u.shadows.ChangeShadow(ctx, p, name, change)
}

type unwatchedHarness struct{ *harness }

func (h unwatchedHarness) Store() fleet.Store { return unwatched{h.store, NewShadows(h.env.Client)} }

func TestShadowsConformance(t *testing.T) {
	fleettest.RunShadows(t, func(t *testing.T) fleettest.Harness { return unwatchedHarness{newHarness(t)} })
}

// Of several objects with one name the same counts as for a Store, now and when it
// is gone. Nothing waits until a watch has seen them.
func TestShadowsOfDuplicates(t *testing.T) {
	h := newHarness(t)
	p := h.Product(t)
	shadows := NewShadows(h.env.Client)
	for range 4 {
		h.Duplicate(t, p, "d")
	}
	h.Create(t, p, fleettest.Device{Name: "other"})
	for left := 4; left > 0; left-- {
		want := fleet.Shadow{Stored: shadow.Stored{Reported: `{"a":1}`, Version: 1, Timestamp: 1}}
		err := shadows.ChangeShadow(t.Context(), p, "d", func(was fleet.Shadow) (fleet.Shadow, error) {
			if was.Version != 0 {
				t.Errorf("with %d objects: it has been written before", left)
			}
			return want, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := shadows.ReadShadow(t.Context(), p, "d")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("with %d objects (-want +got):\n%s", left, diff)
		}
		if diff := cmp.Diff(want, h.Shadow(t, p, "d"), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("with %d objects, the one that counts (-want +got):\n%s", left, diff)
		}
		if err := h.store.Sync(t.Context(), p.Namespace); err != nil {
			t.Fatal(err)
		}
		object, _, _ := h.store.index.object(p, "d")
		if counts := h.find(t, p, "d").Name; object != counts {
			t.Errorf("with %d objects: the store takes %s, not %s", left, object, counts)
		}
		h.Delete(t, p, "d")
	}
	var list v1alpha1.DeviceList
	if err := h.env.Client.List(t.Context(), &list, client.InNamespace(p.Namespace)); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 || list.Items[0].Status.Shadow != nil {
		t.Errorf("another device was written to: %+v", list.Items)
	}
}

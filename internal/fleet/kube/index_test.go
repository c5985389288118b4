package kube

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

func object(name, product, device, uid string, created int64, version int, disabled bool) *v1alpha1.Device {
	return &v1alpha1.Device{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: name, UID: types.UID(uid), ResourceVersion: fmt.Sprint(version),
			CreationTimestamp: metav1.Unix(created, 0),
		},
		Spec: v1alpha1.DeviceSpec{ProductID: product, DeviceName: device, Disabled: disabled},
	}
}

func TestIndexEvents(t *testing.T) {
	p := fleet.Product{Namespace: "ns", ProductID: "P"}
	tests := map[string]struct {
		events    func(x *index)
		want      []string
		wantTotal int64
		wantUID   types.UID // of the object that counts for device "a"
	}{
		"added": {
			events: func(x *index) { x.OnAdd(object("o", "P", "a", "u", 1, 1, false), true) },
			want:   []string{"a"}, wantTotal: 1, wantUID: "u",
		},
		"added twice": {
			events: func(x *index) {
				x.OnAdd(object("o", "P", "a", "u", 1, 1, false), true)
				x.OnAdd(object("o", "P", "a", "u", 1, 1, false), false)
			},
			want: []string{"a"}, wantTotal: 1, wantUID: "u",
		},
		"deleted": {
			events: func(x *index) {
				x.OnAdd(object("o", "P", "a", "u", 1, 1, false), true)
				x.OnDelete(object("o", "P", "a", "u", 1, 2, false))
			},
		},
		"deleted, last state unknown and stale": {
			events: func(x *index) {
				x.OnAdd(object("o", "P", "a", "u", 1, 1, false), true)
				x.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "ns/o", Obj: object("o", "P", "before", "older", 0, 1, true)})
			},
		},
		"deleted, never known": {
			events: func(x *index) {
				x.OnDelete(object("o", "P", "a", "u", 1, 2, false))
				x.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "other/o"})
			},
		},
		"made anew in one update": {
			events: func(x *index) {
				x.OnAdd(object("o", "P", "b", "u1", 1, 1, false), true)
				x.OnUpdate(object("o", "P", "b", "u1", 1, 1, false), object("o", "P", "a", "u2", 2, 9, false))
			},
			want: []string{"a"}, wantTotal: 1, wantUID: "u2",
		},
		"moved to another product": {
			events: func(x *index) {
				x.OnAdd(object("o", "Q", "a", "u1", 1, 1, false), true)
				x.OnUpdate(nil, object("o", "P", "a", "u2", 2, 9, false))
			},
			want: []string{"a"}, wantTotal: 1, wantUID: "u2",
		},
		"disabled": {
			events: func(x *index) {
				x.OnAdd(object("o", "P", "a", "u", 1, 1, false), true)
				x.OnUpdate(nil, object("o", "P", "a", "u", 1, 2, true))
			},
			wantTotal: 1, wantUID: "u",
		},
		"the oldest counts, whatever the order": {
			events: func(x *index) {
				x.OnAdd(object("o2", "P", "a", "u2", 2, 2, true), true)
				x.OnAdd(object("o1", "P", "a", "u1", 1, 1, false), true)
				x.OnAdd(object("o3", "P", "a", "u3", 3, 3, true), true)
			},
			want: []string{"a"}, wantTotal: 1, wantUID: "u1",
		},
		"of the same second, the smallest UID": {
			events: func(x *index) {
				x.OnAdd(object("o2", "P", "a", "u2", 1, 2, false), true)
				x.OnAdd(object("o3", "P", "a", "u3", 1, 3, false), true)
				x.OnAdd(object("o1", "P", "a", "u1", 1, 1, false), true)
			},
			want: []string{"a"}, wantTotal: 1, wantUID: "u1",
		},
		"the oldest is disabled: the device is": {
			events: func(x *index) {
				x.OnAdd(object("o1", "P", "a", "u1", 1, 1, true), true)
				x.OnAdd(object("o2", "P", "a", "u2", 2, 2, false), true)
			},
			wantTotal: 1, wantUID: "u1",
		},
		"the oldest goes: the next counts": {
			events: func(x *index) {
				x.OnAdd(object("o1", "P", "a", "u1", 1, 1, true), true)
				x.OnAdd(object("o2", "P", "a", "u2", 2, 2, false), true)
				x.OnDelete(object("o1", "P", "a", "u1", 1, 3, true))
			},
			want: []string{"a"}, wantTotal: 1, wantUID: "u2",
		},
		"things that are no devices": {
			events: func(x *index) {
				x.OnAdd("what?", true)
				x.OnUpdate(nil, nil)
				x.OnDelete(nil)
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			x := newIndex()
			x.enabled(p) // an earlier answer must not stick
			tt.events(x)
			if diff := cmp.Diff(tt.want, slices.Clone(x.enabled(p))); diff != "" && len(tt.want)+len(x.enabled(p)) > 0 {
				t.Errorf("enabled (-want +got):\n%s", diff)
			}
			if got := x.total(p); got != tt.wantTotal {
				t.Errorf("total %d, want %d", got, tt.wantTotal)
			}
			if _, uid, ok := x.object(p, "a"); uid != tt.wantUID || ok != (tt.wantUID != "") {
				t.Errorf("object of a: %q (%v), want %q", uid, ok, tt.wantUID)
			}
		})
	}
}

// TestIndexAgainstModel compares the index with a list of objects, after many
// random events. Few names make for many duplicates.
func TestIndexAgainstModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	x, model := newIndex(), map[string]*v1alpha1.Device{}
	for step := range 20000 {
		name := fmt.Sprint("o", random.IntN(30))
		known := model[name]
		fresh := object(name, []string{"P", "Q"}[random.IntN(2)], fmt.Sprint("d", random.IntN(8)), fmt.Sprint("u", step), random.Int64N(5), step+1, random.IntN(4) == 0)
		switch action := random.IntN(6); {
		case known == nil:
			x.OnAdd(fresh, false)
			model[name] = fresh
		case action == 0:
			x.OnDelete(known)
			delete(model, name)
		case action == 1:
			x.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "ns/" + name, Obj: fresh})
			delete(model, name)
		case action == 2:
			x.OnUpdate(known, fresh)
			model[name] = fresh
		default:
			changed := known.DeepCopy()
			changed.ResourceVersion = fmt.Sprint(step + 1)
			changed.Spec.Disabled = random.IntN(2) == 0
			x.OnUpdate(known, changed)
			model[name] = changed
		}
		if random.IntN(3) == 0 {
			compareWithModel(t, x, model, fleet.Product{Namespace: "ns", ProductID: []string{"P", "Q"}[random.IntN(2)]})
		}
		if t.Failed() {
			t.Fatalf("at step %d", step)
		}
	}
	for _, device := range model {
		x.OnDelete(device)
	}
	if len(x.namespaces) != 0 {
		t.Errorf("%d namespaces are left when all objects are gone", len(x.namespaces))
	}
}

func compareWithModel(t *testing.T, x *index, model map[string]*v1alpha1.Device, p fleet.Product) {
	t.Helper()
	counts := map[string]*v1alpha1.Device{}
	for _, device := range model {
		if device.Spec.ProductID != p.ProductID {
			continue
		}
		best := counts[device.Spec.DeviceName]
		if best == nil || device.CreationTimestamp.Before(&best.CreationTimestamp) ||
			(device.CreationTimestamp.Equal(&best.CreationTimestamp) && device.UID < best.UID) {
			counts[device.Spec.DeviceName] = device
		}
	}
	want := []string{}
	for name, device := range counts {
		if !device.Spec.Disabled {
			want = append(want, name)
		}
		if object, uid, ok := x.object(p, name); !ok || uid != device.UID || object != device.Name {
			t.Errorf("object of %s: %s %s, want %s %s", name, object, uid, device.Name, device.UID)
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, append([]string{}, x.enabled(p)...)); diff != "" {
		t.Errorf("enabled (-want +got):\n%s", diff)
	}
	if got := x.total(p); got != int64(len(counts)) {
		t.Errorf("total %d, want %d", got, len(counts))
	}
}

func TestAgrees(t *testing.T) {
	newest := map[string]uint64{"o1": 10, "o2": 11}
	tests := map[string]struct {
		want snapshot
		ok   bool
	}{
		"as listed":                          {snapshot{version: 20, total: 2, versions: newest}, true},
		"an object in a later version":       {snapshot{version: 20, total: 2, versions: map[string]uint64{"o1": 9, "o2": 11}}, true},
		"an object in an earlier version":    {snapshot{version: 20, total: 2, versions: map[string]uint64{"o1": 10, "o2": 12}}, false},
		"an object not known":                {snapshot{version: 20, total: 2, versions: map[string]uint64{"o1": 10, "o3": 11}}, false},
		"fewer objects":                      {snapshot{version: 20, total: 3, versions: newest}, false},
		"more objects":                       {snapshot{version: 20, total: 1, versions: map[string]uint64{"o1": 10}}, false},
		"more objects, all events taken":     {snapshot{version: 11, total: 1, versions: map[string]uint64{"o1": 10}}, true},
		"fewer objects, as if relisting":     {snapshot{version: 11, total: 3, versions: newest}, false},
		"number not known":                   {snapshot{version: 20, total: -1, versions: newest}, false},
		"number not known, all events taken": {snapshot{version: 11, total: -1, versions: newest}, true},
		"version not known":                  {snapshot{total: 3, versions: newest}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			x := newIndex()
			x.OnAdd(object("o1", "P", "a", "u1", 1, 10, false), true)
			x.OnAdd(object("o2", "P", "b", "u2", 1, 11, false), true)
			if got := x.agrees("ns", tt.want); got != tt.ok {
				t.Errorf("agrees: %v, want %v", got, tt.ok)
			}
		})
	}
	if x := newIndex(); !x.agrees("empty", snapshot{version: 20}) {
		t.Error("an empty index does not agree with an empty namespace")
	}
}

// What devices had acknowledged and is gone is counted, once, from when somebody asks.
func TestIndexAcknowledgedGone(t *testing.T) {
	x := newIndex()
	version := 0
	write := func(device, uid string, disabled bool, tasks ...string) {
		version++
		o := object(device, "P", device, uid, 1, version, disabled)
		o.Status.Shadow = &v1alpha1.DeviceShadow{AppliedTasks: tasks, Acknowledged: int32(len(tasks))}
		x.OnUpdate(nil, o)
	}
	now := time.Unix(1_700_000_000, 0)
	want := func(when string, devices, gone int64) {
		t.Helper()
		if diff := cmp.Diff(fleet.Acknowledged{Devices: devices, Gone: gone}, x.acknowledgedBy([]string{"task"}, now)["task"]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	write("before", "u0", false, "task")
	x.OnDelete(object("before", "P", "before", "u0", 1, 2, false))
	for _, device := range []string{"a", "b", "c", "d"} {
		write(device, "u-"+device, false, "task")
	}
	want("when first asked", 4, 0)
	write("a", "u-a", false, "other", "task")
	write("a", "u-a", true, "other", "task") // disabled: another entry
	write("a", "u-a", false, "other", "task")
	want("as before", 4, 0)
	write("a", "u-a", false, "other")
	want("one has forgotten it", 3, 1)
	write("a", "u-a", true, "third")
	want("long ago", 3, 1)
	x.OnDelete(object("b", "P", "b", "u-b", 1, version, false))
	x.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "ns/c"})
	want("two are deleted", 1, 3)
	write("d", "anew", false)
	want("one was made anew", 0, 4)
	write("d", "anew", false, "task")
	want("and has acknowledged it too", 1, 4)

	now = now.Add(goneFor + time.Hour)
	x.acknowledgedBy([]string{"another"}, now)
	if len(x.gone) != 1 {
		t.Errorf("%d tasks are remembered, want the one that was asked for", len(x.gone))
	}
}

package postgres

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/shadow"
)

func given(devices ...Device) iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		for _, d := range devices {
			if !yield(d, nil) {
				return
			}
		}
	}
}

func shadowOf(reported string, version int64) fleet.Shadow {
	return fleet.Shadow{Stored: shadow.Stored{Reported: reported, Version: version, Timestamp: 1700000000000 + version}}
}

func (h *harness) export(t testing.TB, p fleet.Product) (all []Device) {
	t.Helper()
	for d, err := range h.store.Export(t.Context(), p) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	return all
}

func TestImport(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	steps := []struct {
		name    string
		devices []Device
		want    ImportSummary
		after   []Device
	}{
		{
			name:    "new ones, in canonical form and in the order of bytes",
			devices: []Device{{Name: "a"}, {Name: "B", Disabled: true}, {Name: "c", Shadow: shadowOf(` {"b" : 1.0, "a":12345678901234567890} `, 3)}},
			want:    ImportSummary{Added: 3},
			after:   []Device{{Name: "B", Disabled: true}, {Name: "a"}, {Name: "c", Shadow: shadowOf(`{"a":12345678901234567890,"b":1.0}`, 3)}},
		},
		{
			name:    "the same again",
			devices: []Device{{Name: "a"}, {Name: "B", Disabled: true}, {Name: "c", Shadow: shadowOf(`{"b":1.0,"a":12345678901234567890}`, 3)}},
			want:    ImportSummary{Unchanged: 3},
			after:   []Device{{Name: "B", Disabled: true}, {Name: "a"}, {Name: "c", Shadow: shadowOf(`{"a":12345678901234567890,"b":1.0}`, 3)}},
		},
		{
			name:    "only what differs, and no older shadow",
			devices: []Device{{Name: "a", Disabled: true}, {Name: "B", Shadow: shadowOf(`{"n":1}`, 1)}, {Name: "c", Shadow: shadowOf(`{"old":1}`, 2)}, {Name: "d"}},
			want:    ImportSummary{Added: 1, Updated: 2, Unchanged: 1},
			after:   []Device{{Name: "B", Shadow: shadowOf(`{"n":1}`, 1)}, {Name: "a", Disabled: true}, {Name: "c", Shadow: shadowOf(`{"a":12345678901234567890,"b":1.0}`, 3)}, {Name: "d"}},
		},
		{
			name:    "disabled, and its older shadow is left alone",
			devices: []Device{{Name: "c", Disabled: true}},
			want:    ImportSummary{Updated: 1},
			after:   []Device{{Name: "B", Shadow: shadowOf(`{"n":1}`, 1)}, {Name: "a", Disabled: true}, {Name: "c", Disabled: true, Shadow: shadowOf(`{"a":12345678901234567890,"b":1.0}`, 3)}, {Name: "d"}},
		},
		{
			name:    "one name twice",
			devices: []Device{{Name: "d", Disabled: true}, {Name: "e"}, {Name: "d", Shadow: shadowOf(`{"n":2}`, 2)}},
			want:    ImportSummary{Added: 1, Updated: 2},
			after:   []Device{{Name: "B", Shadow: shadowOf(`{"n":1}`, 1)}, {Name: "a", Disabled: true}, {Name: "c", Disabled: true, Shadow: shadowOf(`{"a":12345678901234567890,"b":1.0}`, 3)}, {Name: "d", Shadow: shadowOf(`{"n":2}`, 2)}, {Name: "e"}},
		},
		{name: "none", after: []Device{{Name: "B", Shadow: shadowOf(`{"n":1}`, 1)}, {Name: "a", Disabled: true}, {Name: "c", Disabled: true, Shadow: shadowOf(`{"a":12345678901234567890,"b":1.0}`, 3)}, {Name: "d", Shadow: shadowOf(`{"n":2}`, 2)}, {Name: "e"}}},
	}
	var before []Device
	for _, step := range steps {
		got, err := h.store.Preview(t.Context(), p, given(step.devices...))
		if diff := cmp.Diff(step.want, got); err != nil || diff != "" {
			t.Errorf("%s: preview, error %v (-want +got):\n%s", step.name, err, diff)
		}
		if diff := cmp.Diff(before, h.export(t, p), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: devices after the preview (-want +got):\n%s", step.name, diff)
		}
		before = step.after
		got, err = h.store.Import(t.Context(), p, given(step.devices...))
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s: summary (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(step.after, h.export(t, p), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: devices (-want +got):\n%s", step.name, diff)
		}
	}
}

func TestImportChunksAndExportPages(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	const n = 2*importChunk + exportPage + 1
	all := make([]Device, n)
	for i := range all {
		all[i] = Device{Name: deviceName(i)}
	}
	sum, err := h.store.Import(t.Context(), p, given(all...))
	if diff := cmp.Diff(ImportSummary{Added: n}, sum); diff != "" || err != nil {
		t.Fatalf("error %v, summary (-want +got):\n%s", err, diff)
	}
	same := func(a, b Device) bool { return a.Name == b.Name }
	if got := h.export(t, p); !slices.EqualFunc(all, got, same) {
		t.Errorf("%d devices were exported, or others, of %d", len(got), n)
	}
	var listed []Device
	for d, err := range h.store.List(t.Context(), p) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, d)
	}
	if !slices.EqualFunc(all, listed, same) {
		t.Errorf("%d devices were listed, or others, of %d", len(listed), n)
	}
}

func TestImportErrors(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	own := errors.New("the file has ended early")
	tests := map[string]struct {
		devices iter.Seq2[Device, error]
		want    error
	}{
		"name":                {given(Device{Name: "a"}, Device{Name: "a/b"}), errName},
		"document":            {given(Device{Name: "a"}, Device{Name: "b", Shadow: shadowOf(`{"a":1`, 1)}), shadow.ErrNotJSON},
		"too deep":            {given(Device{Name: "a"}, Device{Name: "b", Shadow: shadowOf(`{"a":{"a":{"a":{"a":{"a":{}}}}}}`, 1)}), shadow.ErrTooDeep},
		"version":             {given(Device{Name: "a"}, Device{Name: "b", Shadow: shadowOf(`{}`, shadow.MaxGivenVersion+1)}), errVersion},
		"version less than 0": {given(Device{Name: "a"}, Device{Name: "b", Shadow: shadowOf(`{}`, -1)}), errVersion},
		"of the source": {func(yield func(Device, error) bool) {
			_ = yield(Device{Name: "a"}, nil) && yield(Device{}, own)
		}, own},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sum, err := h.store.Import(t.Context(), h.Product(t), tt.devices)
			if !errors.Is(err, tt.want) || sum != (ImportSummary{}) {
				t.Errorf("error %v, summary %+v, want %v and none", err, sum, tt.want)
			}
			if _, previewErr := h.store.Preview(t.Context(), h.Product(t), tt.devices); fmt.Sprint(previewErr) != fmt.Sprint(err) {
				t.Errorf("a preview ends with %v, the import with %v", previewErr, err)
			}
			bad, ok := errors.AsType[*ImportError](err)
			if ok != !errors.Is(tt.want, own) || ok && bad.Row != 2 {
				t.Errorf("error %#v, want device 2", err)
			}
		})
	}
}

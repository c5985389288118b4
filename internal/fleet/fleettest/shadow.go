package fleettest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// read reads a shadow, as often as it fails for a passing reason.
func (s *suite) read(name string) (fleet.Shadow, error) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	for {
		got, err := s.store.ReadShadow(ctx, s.product, name)
		if !passing(err) || ctx.Err() != nil {
			return got, err
		}
	}
}

// change changes a shadow, as often as it fails for a passing reason.
func (s *suite) change(name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	for {
		err := s.store.ChangeShadow(ctx, s.product, name, change)
		if !passing(err) || errors.Is(err, errRefused) || ctx.Err() != nil {
			return err
		}
	}
}

var errRefused = errors.New("refused")

// report is what a device's report makes of a shadow.
func (s *suite) report(reported string) func(fleet.Shadow) (fleet.Shadow, error) {
	patch := s.patch(reported)
	return func(was fleet.Shadow) (fleet.Shadow, error) {
		doc, err := shadow.Parse(was.Stored)
		if err != nil {
			return fleet.Shadow{}, err
		}
		if err := doc.Update(shadow.Update{Reported: patch}, now); err != nil {
			return fleet.Shadow{}, err
		}
		return was.With(doc), nil
	}
}

func (s *suite) shadowRead() {
	full := fleet.Shadow{
		Stored: shadow.Stored{
			Reported: `{"n":12345678901234567890.10,"s":"<&>é\u2028"}`, Desired: `{"n":1}`, Metadata: `{"reported":{"n":` + old + `}}`,
			Version: 9007199254740993, Timestamp: 1600000000000,
		},
		AppliedTasks: []string{"b", "a"}, Acknowledged: 1,
	}
	s.create(Device{Name: "full", Shadow: full}, Device{Name: "empty"}, Device{Name: "off", Disabled: true, Shadow: full})
	for name, want := range map[string]fleet.Shadow{"full": full, "empty": {}, "off": full} {
		got, err := s.read(name)
		if err != nil {
			s.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			s.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	// What was just written is what is read.
	for i := range 20 {
		if err := s.change("empty", s.report(fmt.Sprintf(`{"i":%d}`, i))); err != nil {
			s.Fatal(err)
		}
		if got, err := s.read("empty"); err != nil || got.Version != int64(i+1) {
			s.Fatalf("after %d changes: version %d, error %v", i+1, got.Version, err)
		}
	}
}

func (s *suite) shadowChange() {
	before := fleet.Shadow{
		Stored:       shadow.Stored{Desired: `{"a":2}`, Metadata: `{"desired":{"a":` + old + `}}`, Version: 7, Timestamp: 1600000000000},
		AppliedTasks: []string{"task"},
	}
	s.create(Device{Name: "d", Shadow: before}, Device{Name: "new"}, Device{Name: "off", Disabled: true, Shadow: before})
	after := fleet.Shadow{
		Stored: shadow.Stored{
			Reported: `{"a":1}`, Desired: `{"a":2}`, Metadata: `{"reported":{"a":` + stamp + `},"desired":{"a":` + old + `}}`,
			Version: 8, Timestamp: now.UnixMilli(),
		},
		AppliedTasks: []string{"task"},
	}
	first := fleet.Shadow{Stored: shadow.Stored{Reported: `{"a":1}`, Metadata: `{"reported":{"a":` + stamp + `}}`, Version: 1, Timestamp: now.UnixMilli()}}
	for name, want := range map[string]fleet.Shadow{"d": after, "new": first, "off": after} {
		if err := s.change(name, s.report(`{"a":1}`)); err != nil {
			s.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, s.h.Shadow(s, s.product, name), cmpopts.EquateEmpty()); diff != "" {
			s.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	// The task is remembered, so it changes nothing when it comes again.
	s.applyAll(s.update("task", `{"a":3}`), "d")
	if got := s.h.Shadow(s, s.product, "d").Version; got != 8 {
		s.Errorf("a task that came again: version %d, want 8", got)
	}
}

func (s *suite) shadowRefused() {
	before := fleet.Shadow{Stored: shadow.Stored{Reported: `{"a":1}`, Version: 7, Timestamp: 1600000000000}}
	s.create(Device{Name: "d", Shadow: before})
	err := s.change("d", func(was fleet.Shadow) (fleet.Shadow, error) {
		was.Version = 100
		return was, fmt.Errorf("an error of its own: %w", errRefused)
	})
	if !errors.Is(err, errRefused) {
		s.Errorf("error %v, want that of change", err)
	}
	if err := s.change("d", func(was fleet.Shadow) (fleet.Shadow, error) { return was, nil }); err != nil {
		s.Errorf("nothing changed: error %v", err)
	}
	if diff := cmp.Diff(before, s.h.Shadow(s, s.product, "d"), cmpopts.EquateEmpty()); diff != "" {
		s.Errorf("shadow (-want +got):\n%s", diff)
	}
}

func (s *suite) shadowGone() {
	s.create(named("a", "b")...)
	s.h.Delete(s, s.product, "b") // no Sync: the store may not know yet
	called := false
	note := func(was fleet.Shadow) (fleet.Shadow, error) { called = true; return was, nil }
	for _, name := range []string{"b", "never-was", ""} {
		if _, err := s.read(name); !errors.Is(err, fleet.ErrDeviceGone) {
			s.Errorf("reading %q: error %v, want ErrDeviceGone", name, err)
		}
		if err := s.change(name, note); !errors.Is(err, fleet.ErrDeviceGone) {
			s.Errorf("changing %q: error %v, want ErrDeviceGone", name, err)
		}
	}
	other := fleet.Product{Namespace: s.product.Namespace, ProductID: "OTHER"}
	if err := s.store.ChangeShadow(s.ctx, other, "a", note); !errors.Is(err, fleet.ErrDeviceGone) {
		s.Errorf("a device of another product: error %v, want ErrDeviceGone", err)
	}
	if called {
		s.Error("change was called for a device that does not exist")
	}
}

// shadowConcurrently lets a device and tasks write the same shadow. Each change
// notes the version that it was made from: a lost update shows as a version that two
// were made from.
func (s *suite) shadowConcurrently() {
	const tasks, reporters, reports = 8, 4, 15
	s.create(Device{Name: "d"})
	var (
		writers sync.WaitGroup
		mu      sync.Mutex
		from    []int64
	)
	for i := range tasks {
		u := s.update(fmt.Sprint("task-", i), fmt.Sprintf(`{"task-%d":%d}`, i, i))
		writers.Go(func() { s.applyAll(u, "d") })
	}
	for r := range reporters {
		writers.Go(func() {
			for i := range reports {
				report := s.report(fmt.Sprintf(`{"reporter-%d":%d}`, r, i))
				var was int64
				err := s.change("d", func(shadow fleet.Shadow) (fleet.Shadow, error) {
					was = shadow.Version
					return report(shadow)
				})
				if err != nil {
					s.Errorf("report %d of %d: %v", i, r, err)
				}
				mu.Lock()
				from = append(from, was)
				mu.Unlock()
			}
		})
	}
	writers.Wait()

	got := s.h.Shadow(s, s.product, "d")
	doc, err := shadow.Parse(got.Stored)
	if err != nil {
		s.Fatal(err)
	}
	wantReported, wantDesired := shadow.Object{}, shadow.Object{}
	for r := range reporters {
		wantReported[fmt.Sprint("reporter-", r)] = s.patch(fmt.Sprintf(`{"n":%d}`, reports-1))["n"]
	}
	for i := range tasks {
		wantDesired[fmt.Sprint("task-", i)] = s.patch(fmt.Sprintf(`{"n":%d}`, i))["n"]
	}
	if diff := cmp.Diff(wantReported, doc.Reported); diff != "" {
		s.Errorf("reported (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantDesired, doc.Desired); diff != "" {
		s.Errorf("desired (-want +got):\n%s", diff)
	}
	if want := int64(tasks + reporters*reports); got.Version != want {
		s.Errorf("version %d, want %d", got.Version, want)
	}
	slices.Sort(from)
	if distinct := len(slices.Compact(slices.Clone(from))); distinct != len(from) {
		s.Errorf("%d reports were made from %d versions", len(from), distinct)
	}
}

func (s *suite) shadowEnded() {
	s.create(Device{Name: "a"})
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if err := s.store.ChangeShadow(ctx, s.product, "a", s.report(`{"a":1}`)); !errors.Is(err, context.Canceled) {
		s.Errorf("error %v, want that of the context", err)
	}
	if got := s.h.Shadow(s, s.product, "a").Version; got != 0 {
		s.Errorf("version %d, want 0", got)
	}
}

package fleettest

import (
	"errors"
	"math"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// lastVersion makes two devices: the shadow of the first has the last version there is,
// which somebody has written past the store, and that of the second the one before.
func (s *suite) lastVersion() (first, second string) {
	s.Helper()
	for i, name := range []string{"first", "second"} {
		s.create(Device{Name: name, Shadow: fleet.Shadow{Stored: shadow.Stored{
			Reported: `{"a":1}`, Version: math.MaxInt64 - int64(i), Timestamp: 1600000000000,
		}}})
	}
	return "first", "second"
}

// applyLastVersion : a shadow that cannot change fails for good, alone, and stays as it is.
func (s *suite) applyLastVersion() {
	first, second := s.lastVersion()
	patch, err := shadow.ParseDesired(`{"state":"open"}`)
	if err != nil {
		s.Fatal(err)
	}
	results := s.store.ApplyDesired(s.ctx, s.product, fleet.DesiredUpdate{TaskUID: "task", Patch: patch, Now: now}, []string{first, second})
	final, is := errors.AsType[*fleet.DeviceError](results[0].Err)
	if !is || final.Reason != v1alpha1.ReasonInvalidShadow || final.Message != shadow.ErrLastVersion.Error() {
		s.Errorf("the first: error %v, want %v", results[0].Err, shadow.ErrLastVersion)
	}
	if results[1].Err != nil || results[1].Delta == nil {
		s.Errorf("the second: delta %s, error %v", results[1].Delta, results[1].Err)
	}
	for _, name := range []string{first, second} {
		if is := s.h.Shadow(s, s.product, name); is.Version != math.MaxInt64 || (is.Desired == "") != (name == first) {
			s.Errorf("the %s: version %d, desired %s", name, is.Version, is.Desired)
		}
	}
}

// shadowLastVersion : such a shadow can be read, and not changed.
func (s *suite) shadowLastVersion() {
	first, _ := s.lastVersion()
	was, err := s.store.ReadShadow(s.ctx, s.product, first)
	if err != nil || was.Version != math.MaxInt64 {
		s.Fatalf("version %d, error %v", was.Version, err)
	}
	if _, err := was.Document(); err != nil {
		s.Errorf("reading the document: %v", err)
	}
	err = s.store.ChangeShadow(s.ctx, s.product, first, func(was fleet.Shadow) (fleet.Shadow, error) {
		doc, err := was.Document()
		if err != nil {
			return was, err
		}
		if err := doc.Update(shadow.Update{Reported: shadow.Object{"a": true}}, now); err != nil {
			return was, err
		}
		return was.With(doc), nil
	})
	if !errors.Is(err, shadow.ErrLastVersion) {
		s.Errorf("error %v, want %v", err, shadow.ErrLastVersion)
	}
}

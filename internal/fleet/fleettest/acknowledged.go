package fleettest

import (
	"fmt"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// A device has acknowledged a task when it has reported what is desired of it, or
// cleared that; and what it has acknowledged it does not take back.
func (s *suite) acknowledged() {
	s.create(named("reports", "clears", "silent", "late")...)
	s.create(Device{Name: "complied", Shadow: fleet.Shadow{Stored: shadow.Stored{Reported: `{"state":"open"}`, Version: 1, Timestamp: 1600000000000}}})
	s.synced()
	want := func(when string, want map[string]int64) {
		s.synced()
		got, err := s.store.Acknowledged(s.ctx, s.product, []string{"first", "second", "never"})
		if err != nil {
			s.Fatal(err)
		}
		counts := map[string]int64{}
		for uid, n := range got {
			if n.Devices+n.Gone > 0 {
				counts[uid] = n.Devices + n.Gone
			}
			if n.Total && n.Gone != 0 {
				s.Errorf("%s: %+v of %s, want none of a total to be gone", when, n, uid)
			}
		}
		if diff := cmp.Diff(want, counts); diff != "" {
			s.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	update := func(name string, u shadow.Update) {
		err := s.change(name, func(was fleet.Shadow) (fleet.Shadow, error) {
			doc, err := shadow.Parse(was.Stored)
			if err != nil {
				return fleet.Shadow{}, err
			}
			if err := doc.Update(u, now); err != nil {
				return fleet.Shadow{}, err
			}
			return was.With(doc), nil
		})
		if err != nil {
			s.Fatalf("%s: %v", name, err)
		}
	}
	want("before any task", map[string]int64{})
	first := s.update("first", `{"state":"open"}`)
	s.applyAll(first, "reports", "clears", "silent", "late", "complied")
	want("when the task has changed them", map[string]int64{"first": 1})

	update("reports", shadow.Update{Reported: shadow.Object{"state": "open"}})
	update("clears", shadow.Update{ClearDesired: true})
	update("silent", shadow.Update{Reported: shadow.Object{"state": "ajar"}})
	want("when two have complied", map[string]int64{"first": 3})

	s.applyAll(s.update("second", `{"lamp":true}`), "reports", "late")
	want("when another task wants something else", map[string]int64{"first": 3})
	s.applyAll(first, "reports") // resumed
	update("reports", shadow.Update{Reported: shadow.Object{"state": "ajar"}})
	want("when one has changed its mind", map[string]int64{"first": 3})
	update("late", shadow.Update{Reported: shadow.Object{"state": "open", "lamp": true}})
	want("when one has done both at once", map[string]int64{"first": 4, "second": 1})
	if _, forgets := s.store.(*Memory); forgets {
		return
	}
	for i := range fleet.MaxAppliedTasks {
		s.applyAll(s.update(fmt.Sprint("later-", i), `{"other":true}`), "clears")
	}
	want("when one has forgotten it", map[string]int64{"first": 4, "second": 1})
	s.h.Delete(s.T, s.product, "late")
	want("when one is deleted", map[string]int64{"first": 4, "second": 1})
}

package postgres

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

// TestAlike : devices that are like most others are updated by one statement, and what
// becomes of them and of the others is what the pure rules say.
func TestAlike(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	random := rand.New(rand.NewPCG(7, 9))
	for _, c := range []struct {
		name   string
		change func(*fleettest.Device) // of each tenth device
		names  func([]string) []string
		rest   int // of 100 devices
	}{
		{name: "all are alike"},
		{name: "some report something else", rest: 10, change: func(d *fleettest.Device) { d.Shadow.Reported = `{"a":0}` }},
		{name: "some remember one task less", rest: 10, change: func(d *fleettest.Device) { d.Shadow.AppliedTasks = d.Shadow.AppliedTasks[1:] }},
		{name: "some have acknowledged less", rest: 10, change: func(d *fleettest.Device) { d.Shadow.Acknowledged-- }},
		{name: "some have had the task", rest: 10, change: func(d *fleettest.Device) {
			d.Shadow.AppliedTasks = append(slices.Clone(d.Shadow.AppliedTasks[1:]), "task")
		}},
		{name: "some are disabled", rest: 100, change: func(d *fleettest.Device) { d.Disabled = true }},
		{name: "not for all", rest: 99, names: func(names []string) []string { return slices.Delete(names, 50, 51) }},
		{name: "not for the first and the last", rest: 0, names: func(names []string) []string { return names[1:99] }},
		{name: "for one that is gone", rest: 101, names: func(names []string) []string { return slices.Insert(names, 50, "device-149-b") }},
		{name: "few", rest: leastAlike - 1, names: func(names []string) []string { return names[:leastAlike-1] }},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, tasks := range []int{2, 15, 16} {
				alike := fleet.Shadow{AppliedTasks: make([]string, tasks), Acknowledged: 1}
				alike.Reported, alike.Desired, alike.Metadata, alike.Timestamp = `{"a":1}`, `{"a":2}`, `{"desired":{"a":{"timestamp":5}}}`, 7
				for i := range alike.AppliedTasks {
					alike.AppliedTasks[i] = fmt.Sprint("other-", i)
				}
				var devices []fleettest.Device
				var names []string
				for i := range 100 {
					d := fleettest.Device{Name: fmt.Sprint("device-", 100+i), Shadow: alike}
					d.Shadow.Version = random.Int64N(1000)
					if i%10 == 3 && c.change != nil {
						c.change(&d)
					}
					devices, names = append(devices, d), append(names, d.Name)
				}
				if c.names != nil {
					names = c.names(names)
				}
				expected := &likeness{documents: documents{alike.Reported, alike.Desired, alike.Metadata}, tasks: tasks, acknowledged: 1, common: true}

				u := update(t, "task", `{"b":3}`)
				h.store.expected.Store(expected)
				p := h.Product(t)
				h.Create(t, p, devices...)
				h.applyAsThePureRules(t, p, u, devices, names)

				h.store.expected.Store(expected)
				p = h.Product(t)
				h.Create(t, p, devices...)
				if rest := h.leftByAlike(t, p, u, names); rest != c.rest {
					t.Errorf("with %d tasks, %d devices are left, want %d", tasks, rest, c.rest)
				}
			}
		})
	}
}

// leftByAlike returns how many of the devices are left by the statement for those that
// are alike.
func (h *harness) leftByAlike(t *testing.T, p fleet.Product, u fleet.DesiredUpdate, names []string) int {
	t.Helper()
	a := &application{store: h.store, product: p, update: u, memo: newMemo(u)}
	devices := make([]*device, len(names))
	for i, name := range names {
		devices[i] = &device{name: name}
	}
	rest, err := a.applyAlike(t.Context(), devices)
	if err != nil {
		t.Fatal(err)
	}
	return len(rest)
}

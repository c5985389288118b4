// Package fleettest is the suite that every fleet.Store passes. It is for tests
// only.
package fleettest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// Harness connects the suite with a store and writes to its devices as their
// owners would. Its methods end the test when they fail, and return when the write
// is done; the store need not have seen it.
type Harness interface {
	// Store returns the store under test.
	Store() fleet.Store
	// Product returns a product that has no devices, in a namespace that has none.
	Product(t testing.TB) fleet.Product
	// Create makes devices.
	Create(t testing.TB, p fleet.Product, devices ...Device)
	// Delete deletes a device; if several have the name, the one that counts.
	Delete(t testing.TB, p fleet.Product, name string)
	// SetDisabled disables or enables a device.
	SetDisabled(t testing.TB, p fleet.Product, name string, disabled bool)
	// Report sets the reported part of a shadow and raises its version by one, as
	// the device's own update does, and changes nothing else.
	Report(t testing.TB, p fleet.Product, name, reported string)
	// Shadow returns what is stored for a device; if several have the name, for the
	// one that counts.
	Shadow(t testing.TB, p fleet.Product, name string) fleet.Shadow
}

// Duplicator is a Harness over a store in which two devices of a product can have
// one name.
type Duplicator interface {
	// Duplicate makes another device of that name.
	Duplicate(t testing.TB, p fleet.Product, name string)
}

// Device is a device to be made.
type Device struct {
	Name     string
	Disabled bool
	Shadow   fleet.Shadow
}

// patience is how long the suite waits for what must happen.
const patience = time.Minute

// now is the time of all updates of the suite.
var now = time.UnixMilli(1700000000123)

// Run runs the suite, with a new harness for each test.
func Run(t *testing.T, newHarness func(t *testing.T) Harness) {
	t.Helper()
	run(t, newHarness, "")
}

// RunShadows runs the part of the suite about shadows that are read and changed one by
// one, with a new harness for each test.
func RunShadows(t *testing.T, newHarness func(t *testing.T) Harness) {
	t.Helper()
	run(t, newHarness, "Shadow/")
}

func run(t *testing.T, newHarness func(t *testing.T) Harness, prefix string) {
	t.Helper()
	tests := map[string]func(*suite){
		"Scan/order and pages":      (*suite).scanPages,
		"Scan/ranges":               (*suite).scanRanges,
		"Scan/filters":              (*suite).scanFilters,
		"Scan/while devices change": (*suite).scanUnderChange,
		"Scan/ended context":        (*suite).scanEnded,
		"Disabled":                  (*suite).disabled,
		"Products apart":            (*suite).productsApart,
		"Sync":                      (*suite).sync,
		"Duplicates":                (*suite).duplicates,
		"Apply/merge":               (*suite).applyMerge,
		"Apply/once for each task":  (*suite).applyOnce,
		"Apply/failures":            (*suite).applyFailures,
		"Apply/last version":        (*suite).applyLastVersion,
		"Apply/device gone":         (*suite).applyGone,
		"Apply/concurrent writers":  (*suite).applyConcurrently,
		"Apply/ended context":       (*suite).applyEnded,
		"Shadow/read":               (*suite).shadowRead,
		"Shadow/change":             (*suite).shadowChange,
		"Shadow/change refused":     (*suite).shadowRefused,
		"Shadow/last version":       (*suite).shadowLastVersion,
		"Shadow/device gone":        (*suite).shadowGone,
		"Shadow/concurrent writers": (*suite).shadowConcurrently,
		"Shadow/ended context":      (*suite).shadowEnded,
		"Acknowledged":              (*suite).acknowledged,
	}
	for name, test := range tests {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			h := newHarness(t) // may start a server, which takes its time
			ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
			defer cancel()
			test(&suite{T: t, ctx: ctx, h: h, store: h.Store(), product: h.Product(t)})
		})
	}
}

// suite is one test with what it works on.
type suite struct {
	*testing.T
	ctx     context.Context
	h       Harness
	store   fleet.Store
	product fleet.Product
}

func named(names ...string) []Device {
	devices := make([]Device, len(names))
	for i, name := range names {
		devices[i].Name = name
	}
	return devices
}

// create makes devices and waits until the store has seen them.
func (s *suite) create(devices ...Device) {
	s.Helper()
	s.h.Create(s, s.product, devices...)
	s.synced()
}

func (s *suite) synced() {
	s.Helper()
	if err := s.store.Sync(s.ctx, s.product.Namespace); err != nil {
		s.Fatalf("Sync: %v", err)
	}
}

// all returns all names that q selects, read in pages.
func (s *suite) all(q fleet.Query, limit int) []string {
	s.Helper()
	all := []string{}
	for more := true; more; {
		var names []string
		var err error
		names, more, err = s.store.Scan(s.ctx, q, limit)
		if err != nil {
			s.Fatalf("Scan after %q: %v", q.After, err)
		}
		if len(names) > limit || (more && len(names) < limit) {
			s.Fatalf("Scan after %q gave %d names (more: %v) for a limit of %d", q.After, len(names), more, limit)
		}
		all = append(all, names...)
		if more {
			q.After = names[len(names)-1]
		}
	}
	return all
}

func (s *suite) count(q fleet.Query) int64 {
	s.Helper()
	n, err := s.store.Count(s.ctx, q)
	if err != nil {
		s.Fatalf("Count: %v", err)
	}
	return n
}

func (s *suite) total() int64 {
	s.Helper()
	n, err := s.store.Total(s.ctx, s.product)
	if err != nil {
		s.Fatalf("Total: %v", err)
	}
	return n
}

func (s *suite) patch(text string) shadow.Object {
	s.Helper()
	patch, err := shadow.ParseDesired(text)
	if err != nil {
		s.Fatalf("patch %s: %v", text, err)
	}
	return patch
}

func (s *suite) update(task, patch string) fleet.DesiredUpdate {
	s.Helper()
	return fleet.DesiredUpdate{TaskUID: task, Patch: s.patch(patch), Now: now}
}

// apply applies an update as the executor does: what fails for a passing reason is
// tried again.
func (s *suite) apply(u fleet.DesiredUpdate, names ...string) []fleet.DesiredResult {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	results := make([]fleet.DesiredResult, len(names))
	open := make([]int, len(names)) // positions without a final result
	for i := range open {
		open[i] = i
	}
	for {
		var batch []string
		for _, i := range open {
			batch = append(batch, names[i])
		}
		got := s.store.ApplyDesired(ctx, s.product, u, batch)
		if len(got) != len(batch) {
			s.Errorf("ApplyDesired gave %d results for %d names", len(got), len(batch))
			return results
		}
		var again []int
		for at, i := range open {
			results[i] = got[at]
			if passing(got[at].Err) {
				again = append(again, i)
			}
		}
		if open = again; len(open) == 0 {
			return results
		}
		if ctx.Err() != nil {
			s.Errorf("ApplyDesired never succeeded for %s: %v", names[open[0]], results[open[0]].Err)
			return results
		}
	}
}

// applyAll applies an update that must succeed for each name.
func (s *suite) applyAll(u fleet.DesiredUpdate, names ...string) []fleet.DesiredResult {
	s.Helper()
	results := s.apply(u, names...)
	for i, result := range results {
		if result.Err != nil {
			s.Errorf("ApplyDesired for %s: %v", names[i], result.Err)
		}
	}
	return results
}

func passing(err error) bool {
	if err == nil || errors.Is(err, fleet.ErrDeviceGone) {
		return false
	}
	_, final := errors.AsType[*fleet.DeviceError](err)
	return !final
}

func numbered(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s%05d", prefix, i)
	}
	return names
}

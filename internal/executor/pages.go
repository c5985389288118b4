package executor

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"batchtask.dev/operator/internal/shadow"
)

// pageBudget is how many bytes the pages of all runs may take together. How large the
// deltas of a page are shows only once they are made, and a tenant decides it. So a page is
// paid for in advance, as if each of its devices had the largest delta there is, and what it
// did not need is given back when it is made.
//
// Nobody waits, so nobody can be waited for: a page is as large as a half of what is free
// pays for, and at least smallestPage. So the budget is exceeded by
// no more than two of the smallest pages for each run, and what one run has taken, the next
// finds half of.
type pageBudget struct {
	size  int
	shown prometheus.Gauge

	mu   sync.Mutex
	used int
}

const (
	// smallestPage is how many devices a page may have whatever others have taken.
	smallestPage = 16
	// nameBytes is what a device takes in a page beside its delta.
	nameBytes = 128
	// largestDelta is what the delta of a device may take: a state, and what is around it.
	largestDelta = shadow.MaxBytes + 1<<10
)

// pageAccount is what one run has of the budget.
type pageAccount struct {
	budget *pageBudget
	used   int // guarded by the budget's lock
}

// reserve pays for a page of up to n devices that take most bytes each, and returns how many
// devices it may have and what was paid.
func (a *pageAccount) reserve(n, most int) (devices, paid int) {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	fits := (b.size - b.used) / 2 / most
	devices = min(n, max(fits, smallestPage))
	a.add(devices * most)
	return devices, devices * most
}

// adjust changes what a page has paid.
func (a *pageAccount) adjust(by int) {
	a.budget.mu.Lock()
	defer a.budget.mu.Unlock()
	a.add(by)
}

// leave gives back all that is still paid by a run that has ended.
func (a *pageAccount) leave() {
	a.budget.mu.Lock()
	defer a.budget.mu.Unlock()
	a.add(-a.used)
}

// add needs the lock.
func (a *pageAccount) add(by int) {
	a.used += by
	a.budget.used += by
	a.budget.shown.Set(float64(a.budget.used))
}

package controllers

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

const (
	// databaseEvery is how often the devices in a database are counted, of which no
	// watch tells, and databaseRetry how often at first that is tried when it failed;
	// then ever more rarely.
	databaseEvery = 30 * time.Second
	databaseRetry = 3 * time.Second
	// countPatience is how long the first count may take until people are told that there is
	// none yet, and countTimeout bounds a count.
	countPatience = 5 * time.Second
	countTimeout  = time.Minute
)

// deviceCounts counts the devices of products whose fleet is in a database, on the leader.
// It is no part of the reconciler, which decides whose a product ID is: a database that does
// not answer holds up nothing but the count of its own product.
type deviceCounts struct {
	store fleet.Store
	clock clock.PassiveClock
	wake  Wakeups // of the product whose count is new

	mu      sync.Mutex
	counts  map[types.NamespacedName]*deviceCount
	due     []*deviceCount
	pending chan struct{} // holds one when something is due
}

var _ manager.LeaderElectionRunnable = (*deviceCounts)(nil)

// deviceCount is what is known of a product.
type deviceCount struct {
	name    types.NamespacedName
	uid     types.UID
	product fleet.Product

	asked   time.Time // for the first time
	known   bool
	total   int64
	err     error
	failed  int // in a row
	next    time.Time
	waiting bool // for its turn, or for the database
}

func newDeviceCounts(store fleet.Store, clock clock.PassiveClock) *deviceCounts {
	return &deviceCounts{store: store, clock: clock, counts: map[types.NamespacedName]*deviceCount{}, pending: make(chan struct{}, 1)}
}

// devices is what is known of the devices of a product: how many there are, or trouble.
type devices struct {
	total   *int64
	trouble error
	// early says that nobody has had the time to count them.
	early bool
	// again is when to look again.
	again time.Duration
}

var errNotCounted = errors.New("the database has not answered yet")

// devices returns what is known of the devices of a product. Those in a database are counted
// apart; who asked is woken.
func (r *ProductReconciler) devices(ctx context.Context, p *v1alpha1.Product) devices {
	if p.Spec.Fleet.Type == v1alpha1.FleetTypePostgres {
		return r.counts.of(p)
	}
	total, err := r.Store.Total(ctx, fleet.Product{Namespace: p.Namespace, ProductID: p.Spec.ProductID})
	if err != nil {
		return devices{trouble: err, early: errors.Is(err, fleet.ErrNotReady), again: countDelay}
	}
	return devices{total: &total}
}

// of returns the last count of a product, and sees to a new one when it is time.
func (c *deviceCounts) of(p *v1alpha1.Product) devices {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock.Now()
	name := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
	count := c.counts[name]
	if count == nil || count.uid != p.UID {
		count = &deviceCount{name: name, uid: p.UID, asked: now, product: fleet.Product{Namespace: p.Namespace, ProductID: p.Spec.ProductID}}
		c.counts[name] = count
	}
	if !count.waiting && !now.Before(count.next) {
		count.waiting = true
		c.due = append(c.due, count)
		select {
		case c.pending <- struct{}{}:
		default:
		}
	}
	again := max(countDelay, count.next.Sub(now))
	if count.waiting {
		again = databaseEvery // who asks is woken before
	}
	switch {
	case !count.known:
		return devices{trouble: errNotCounted, early: now.Sub(count.asked) < countPatience, again: countPatience}
	case count.err != nil:
		return devices{trouble: count.err, again: again}
	default:
		total := count.total
		return devices{total: &total, again: again}
	}
}

// forget drops what is known of a product that is gone.
func (c *deviceCounts) forget(name types.NamespacedName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.counts, name)
}

// NeedLeaderElection implements [manager.LeaderElectionRunnable].
func (*deviceCounts) NeedLeaderElection() bool { return true }

// Start implements [manager.Runnable].
func (c *deviceCounts) Start(ctx context.Context) error {
	var counting sync.WaitGroup
	defer counting.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.pending:
		}
		c.mu.Lock()
		due := c.due
		c.due = nil
		c.mu.Unlock()
		for _, count := range due {
			counting.Go(func() { c.count(ctx, count) })
		}
	}
}

// count counts the devices of one product. How many do so at once is bounded by the store.
func (c *deviceCounts) count(ctx context.Context, of *deviceCount) {
	bounded, cancel := context.WithTimeout(ctx, countTimeout)
	var total int64
	err := caught(ctx, func() (err error) {
		total, err = c.store.Total(bounded, of.product)
		return err
	})
	cancel()
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	of.waiting, of.known = false, true
	if of.err = err; err != nil {
		of.failed++
		of.next = c.clock.Now().Add(min(databaseEvery, databaseRetry<<min(of.failed-1, 10)))
	} else {
		of.total, of.failed = total, 0
		of.next = c.clock.Now().Add(databaseEvery)
	}
	c.mu.Unlock()
	c.wake.Wake(of.name)
}

// Package kube keeps devices as Device objects: good for tens of thousands.
//
// The names of the devices are held in memory, fed by an informer. The shadows
// are not: they are read from the API server and written to it when they are
// needed.
package kube

import (
	"context"
	"fmt"
	"slices"

	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/namefilter"
)

// DefaultConcurrency is how many shadows are written at the same time.
const DefaultConcurrency = 16

// Live reads from and writes to the API server, past any cache. It should have no
// client-side throttling, since [Store] limits itself.
type Live interface {
	client.Reader
	client.StatusClient
}

// Store is a [fleet.Store] over Device objects.
type Store struct {
	index  *index
	synced <-chan struct{} // closed when the index has taken the first list
	live   Live
	clock  clock.Clock
	slots  chan struct{} // one for each write under way
}

var _ fleet.Store = (*Store)(nil)

// Option changes a Store.
type Option func(*Store)

// WithConcurrency sets how many shadows are written at the same time, by all
// calls together: at least 1, [DefaultConcurrency] unless set.
func WithConcurrency(n int) Option {
	return func(s *Store) { s.slots = make(chan struct{}, max(1, n)) }
}

// WithClock sets the clock that Sync goes by.
func WithClock(c clock.Clock) Option {
	return func(s *Store) { s.clock = c }
}

// New returns a store that watches Device objects through informers, which may be
// started later; until they have synced, calls return [fleet.ErrNotReady]. The
// cache should use [StripDevice] as its transform for Device.
func New(ctx context.Context, informers cache.Informers, live Live, options ...Option) (*Store, error) {
	s := &Store{
		index: newIndex(),
		live:  live,
		clock: clock.RealClock{},
		slots: make(chan struct{}, DefaultConcurrency),
	}
	for _, option := range options {
		option(s)
	}
	informer, err := informers.GetInformer(ctx, &v1alpha1.Device{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watching devices: %w", err)
	}
	registration, err := informer.AddEventHandlerWithOptions(s.index, toolscache.HandlerOptions{})
	if err != nil {
		return nil, fmt.Errorf("watching devices: %w", err)
	}
	s.synced = registration.HasSyncedChecker().Done()
	return s, nil
}

// ready returns an error until the index has taken the first list: what it says
// before is not wrong, but incomplete.
func (s *Store) ready() error {
	select {
	case <-s.synced:
		return nil
	default:
		return fleet.ErrNotReady
	}
}

// Total implements [fleet.Store].
func (s *Store) Total(_ context.Context, p fleet.Product) (int64, error) {
	if err := s.ready(); err != nil {
		return 0, err
	}
	return s.index.total(p), nil
}

// Count implements [fleet.Store].
func (s *Store) Count(ctx context.Context, q fleet.Query) (int64, error) {
	if err := s.ready(); err != nil {
		return 0, err
	}
	names := within(s.index.enabled(q.Product), q)
	if q.Filter == nil {
		return int64(len(names)), nil
	}
	var count int64
	err := namefilter.Each(ctx, q.Product.Namespace, q.Filter, names, func(string) bool {
		count++
		return true
	})
	if err != nil {
		return 0, fmt.Errorf("counting devices: %w", err)
	}
	return count, nil
}

// Scan implements [fleet.Store]. A page costs one search in the sorted names, and
// one match for each name up to the first one of the next page.
func (s *Store) Scan(ctx context.Context, q fleet.Query, limit int) (names []string, more bool, err error) {
	if limit < 1 {
		return nil, false, fmt.Errorf("scanning devices: the limit is %d, not 1 or more", limit)
	}
	if err := s.ready(); err != nil {
		return nil, false, err
	}
	err = namefilter.Each(ctx, q.Product.Namespace, q.Filter, within(s.index.enabled(q.Product), q), func(name string) bool {
		if len(names) == limit {
			more = true
			return false
		}
		names = append(names, name)
		return true
	})
	if err != nil {
		return nil, false, fmt.Errorf("scanning devices: %w", err)
	}
	return names, more, nil
}

// Acknowledged implements [fleet.Store].
func (s *Store) Acknowledged(_ context.Context, _ fleet.Product, taskUIDs []string) (map[string]fleet.Acknowledged, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	return s.index.acknowledgedBy(taskUIDs, s.clock.Now()), nil
}

// within returns the part of sorted names that is inside the bounds of q.
func within(names []string, q fleet.Query) []string {
	if q.After != "" {
		names = names[after(names, q.After):]
	}
	if q.Until != "" {
		names = names[:after(names, q.Until)]
	}
	return names
}

// after returns the position of the first name greater than bound.
func after(names []string, bound string) int {
	i, found := slices.BinarySearch(names, bound)
	if found {
		i++
	}
	return i
}

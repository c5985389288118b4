package fleettest

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"testing"

	"batchtask.dev/operator/internal/fleet"
)

// Memory is a fleet.Store in memory, for tests of many writes. It is its own
// Harness too. Writes of one shadow meet as they do in a database: each is made on
// the condition that nobody else has written since it read.
type Memory struct {
	mu       sync.Mutex
	products map[fleet.Product]map[string]*Device
	made     int

	// Fault is called before each read and write of a shadow; an error of it is that
	// of the call. It must be set before the store is used.
	Fault func(name string) error
}

var (
	_ fleet.Store = (*Memory)(nil)
	_ Harness     = (*Memory)(nil)
)

// NewMemory returns a store without devices.
func NewMemory() *Memory {
	return &Memory{products: map[fleet.Product]map[string]*Device{}}
}

// Sync implements fleet.Store.
func (m *Memory) Sync(ctx context.Context, _ string) error { return ctx.Err() }

// Total implements fleet.Store.
func (m *Memory) Total(_ context.Context, p fleet.Product) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.products[p])), nil
}

// Count implements fleet.Store.
func (m *Memory) Count(ctx context.Context, q fleet.Query) (int64, error) {
	names, err := m.names(ctx, q)
	return int64(len(names)), err
}

// Scan implements fleet.Store.
func (m *Memory) Scan(ctx context.Context, q fleet.Query, limit int) (names []string, more bool, err error) {
	if limit < 1 {
		return nil, false, fmt.Errorf("scanning devices: the limit is %d, not 1 or more", limit)
	}
	names, err = m.names(ctx, q)
	return names[:min(limit, len(names))], len(names) > limit, err
}

func (m *Memory) names(ctx context.Context, q fleet.Query) ([]string, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("reading devices: %w", ctx.Err())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// Not by namefilter.Each: what waits there would wait outside of a test's bubble.
	filter := regexp.MustCompile(q.Filter.String())
	var names []string
	for name, d := range m.products[q.Product] {
		if !d.Disabled && name > q.After && (q.Until == "" || name <= q.Until) && (q.Filter == nil || filter.MatchString(name)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// ApplyDesired implements fleet.Store.
func (m *Memory) ApplyDesired(ctx context.Context, p fleet.Product, u fleet.DesiredUpdate, names []string) []fleet.DesiredResult {
	results := make([]fleet.DesiredResult, len(names))
	for i, name := range names {
		var applied fleet.Applied
		err := m.ChangeShadow(ctx, p, name, func(was fleet.Shadow) (fleet.Shadow, error) {
			var err error
			applied, err = u.Apply(was)
			return applied.Shadow, err
		})
		if err != nil {
			results[i].Err = err
			continue
		}
		results[i].Delta = applied.Delta
	}
	return results
}

// ReadShadow implements fleet.Store.
func (m *Memory) ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error) {
	if err := m.fault(ctx, name); err != nil {
		return fleet.Shadow{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.products[p][name]
	if d == nil {
		return fleet.Shadow{}, fleet.ErrDeviceGone
	}
	return d.Shadow, nil
}

// ChangeShadow implements fleet.Store.
func (m *Memory) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	for {
		was, err := m.ReadShadow(ctx, p, name)
		if err != nil {
			return err
		}
		is, err := change(was)
		if err != nil {
			return err
		}
		if m.swap(p, name, was, is) {
			return nil
		}
	}
}

// Acknowledged implements fleet.Store.
func (m *Memory) Acknowledged(ctx context.Context, p fleet.Product, taskUIDs []string) (map[string]fleet.Acknowledged, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("counting acknowledgements: %w", ctx.Err())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	counts := map[string]fleet.Acknowledged{}
	for _, d := range m.products[p] {
		for _, uid := range d.Shadow.AppliedTasks[:d.Shadow.Acknowledged] {
			if slices.Contains(taskUIDs, uid) {
				counts[uid] = fleet.Acknowledged{Devices: counts[uid].Devices + 1}
			}
		}
	}
	return counts, nil
}

func (m *Memory) swap(p fleet.Product, name string, was, is fleet.Shadow) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.products[p][name]
	if d == nil || !d.Shadow.Equal(was) {
		return false
	}
	d.Shadow = is
	return true
}

func (m *Memory) fault(ctx context.Context, name string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("the shadow of device %s: %w", name, ctx.Err())
	}
	if m.Fault != nil {
		return m.Fault(name)
	}
	return nil
}

// Store implements Harness.
func (m *Memory) Store() fleet.Store { return m }

// Product implements Harness.
func (m *Memory) Product(testing.TB) fleet.Product {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made++
	return fleet.Product{Namespace: fmt.Sprint("namespace-", m.made), ProductID: "ABCDE12345"}
}

// Create implements Harness.
func (m *Memory) Create(_ testing.TB, p fleet.Product, devices ...Device) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.products[p] == nil {
		m.products[p] = map[string]*Device{}
	}
	for _, d := range devices {
		m.products[p][d.Name] = &d
	}
}

// Delete implements Harness.
func (m *Memory) Delete(_ testing.TB, p fleet.Product, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.products[p], name)
}

// SetDisabled implements Harness.
func (m *Memory) SetDisabled(_ testing.TB, p fleet.Product, name string, disabled bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.products[p][name].Disabled = disabled
}

// Report implements Harness.
func (m *Memory) Report(t testing.TB, p fleet.Product, name, reported string) {
	t.Helper()
	err := m.ChangeShadow(t.Context(), p, name, func(was fleet.Shadow) (fleet.Shadow, error) {
		was.Reported = reported
		was.Version++
		was.Timestamp = now.UnixMilli() + 1
		return was, nil
	})
	if err != nil {
		t.Fatalf("reporting for device %s: %v", name, err)
	}
}

// Shadow implements Harness.
func (m *Memory) Shadow(t testing.TB, p fleet.Product, name string) fleet.Shadow {
	t.Helper()
	got, err := m.ReadShadow(t.Context(), p, name)
	if err != nil {
		t.Fatalf("reading the shadow of device %s: %v", name, err)
	}
	return got
}

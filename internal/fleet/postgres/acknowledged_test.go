package postgres

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/shadow"
)

// acknowledged returns what is counted of the tasks, and of those of randomShadow.
func (h *harness) acknowledged(t testing.TB, p fleet.Product, uids ...string) map[string]int64 {
	t.Helper()
	for i := range fleet.MaxAppliedTasks {
		uids = append(uids, fmt.Sprint("other-", i))
	}
	counts, err := h.store.Acknowledged(t.Context(), p, uids)
	if err != nil {
		t.Fatal(err)
	}
	devices := map[string]int64{}
	for uid, n := range counts {
		if n.Devices > 0 {
			devices[uid] = n.Devices
		}
	}
	return devices
}

// comply reports all that is desired of a device, as the device would.
func comply(was fleet.Shadow) (fleet.Shadow, error) {
	doc, err := shadow.Parse(was.Stored)
	if err != nil {
		return fleet.Shadow{}, err
	}
	if err := doc.Update(shadow.Update{Reported: doc.Desired}, time.UnixMilli(1700000000456)); err != nil {
		return fleet.Shadow{}, err
	}
	return was.With(doc), nil
}

// TestAcknowledgedWithoutDeadlock lets tasks, devices and imports write the same
// devices at once. Several replicas have more sessions than there are rows to count
// in, so they meet there too.
func TestAcknowledgedWithoutDeadlock(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	names := h.seed(t, p, 300)
	var stores []*Store
	for range 3 {
		stores = append(stores, open(t, Options{URL: h.url}))
	}
	const tasks = 12 // none is forgotten
	var uids []string
	var writers sync.WaitGroup
	for i := range tasks {
		uid := fmt.Sprint("task-", i)
		uids = append(uids, uid)
		random := rand.New(rand.NewPCG(uint64(i), 2))
		patch := fmt.Sprintf(`{"field-%d":1}`, i)
		if i%3 == 0 {
			patch = `{"state":"closed"}` // as it is reported
		}
		u := update(t, uid, patch)
		writers.Go(func() {
			own := slices.Clone(names)
			random.Shuffle(len(own), func(a, b int) { own[a], own[b] = own[b], own[a] })
			for chunk := range slices.Chunk(own, 100) {
				h.applyAnyDelta(t, stores[i%3], p, u, chunk)
				for range 10 {
					h.change(t, stores[random.IntN(3)], p, names[random.IntN(len(names))], comply)
				}
			}
		})
	}
	writers.Go(func() {
		for round := range 6 {
			var all []Device
			for _, name := range slices.Backward(names) {
				all = append(all, Device{Name: name, Disabled: round%2 == 0}) // and an old shadow, which stays
			}
			if sum, err := stores[0].Import(t.Context(), p, given(all...)); err != nil || sum.Updated != int64(len(names)) {
				t.Errorf("import: %+v, error %v", sum, err)
			}
		}
	})
	writers.Wait()
	h.wantCounted(t, p, uids)
	for _, name := range names {
		h.change(t, h.store, p, name, comply)
	}
	h.wantCounted(t, p, uids)
	for uid, n := range h.acknowledged(t, p, uids...) {
		if n != int64(len(names)) {
			t.Errorf("%d devices have acknowledged %s, want all %d", n, uid, len(names))
		}
	}
	var deadlocks int
	if err := h.pool.QueryRow(t.Context(), `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`).Scan(&deadlocks); err != nil || deadlocks != 0 {
		t.Errorf("%d deadlocks (error %v)", deadlocks, err)
	}
}

// wantCounted compares what is counted with what the shadows say.
func (h *harness) wantCounted(t testing.TB, p fleet.Product, uids []string) {
	t.Helper()
	want := map[string]int64{}
	rows, err := h.pool.Query(t.Context(), `SELECT uid, count(*) FROM batchtask_device, unnest(applied_tasks[:acknowledged]) AS uid
		WHERE namespace = $1 AND product_id = $2 AND uid = ANY ($3) GROUP BY uid`, p.Namespace, p.ProductID, uids)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var uid string
		var n int64
		if err := rows.Scan(&uid, &n); err != nil {
			t.Fatal(err)
		}
		want[uid] = n
	}
	if err := rows.Err(); err != nil || len(want) == 0 {
		t.Fatalf("%d tasks were acknowledged, error %v", len(want), err)
	}
	if diff := cmp.Diff(want, h.acknowledged(t, p, uids...)); diff != "" {
		t.Errorf("devices that have acknowledged tasks (-in shadows +counted):\n%s", diff)
	}
}

// change changes a shadow as the shadow service does: what fails for a passing reason
// is tried again.
func (h *harness) change(t testing.TB, store *Store, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) {
	t.Helper()
	var err error
	for range 50 {
		if err = store.ChangeShadow(t.Context(), p, name, change); err == nil {
			return
		}
	}
	t.Errorf("changing the shadow of device %s: %v", name, err)
}

// TestAcknowledgedOnce : the server has committed, and the store does not learn of it.
func TestAcknowledgedOnce(t *testing.T) {
	server := pgtest.Start(t)
	h := newHarness(t, server)
	p := h.Product(t)
	names := h.seed(t, p, 200)
	var armed atomic.Bool
	var statements, cuts atomic.Int64
	// A statement that counts is a SELECT, as is the one that sets a session up. Of five, the
	// first and the third are lost: a call that counts, a session, the call again, another
	// session, and the call that gets through.
	proxy := pgtest.StartProxy(t, server.Address(), func(tag string) bool {
		if !armed.Load() || tag != "SELECT 1" {
			return false
		}
		if n := statements.Add(1) % 5; n != 1 && n != 3 {
			return false
		}
		cuts.Add(1)
		return true
	})
	store := open(t, Options{URL: pgtest.URLVia(t, h.url, proxy.Address())})
	armed.Store(true)

	const same, other = "same", "other"
	for chunk := range slices.Chunk(names, 10) {
		h.applyAnyDelta(t, store, p, update(t, same, `{"state":"closed"}`), chunk)
	}
	lost := cuts.Load()
	h.applyAnyDelta(t, h.store, p, update(t, other, `{"state":"open"}`), names)
	if diff := cmp.Diff(map[string]int64{same: 200}, h.acknowledged(t, p, same, other)); diff != "" {
		t.Errorf("after ApplyDesired (-want +got):\n%s", diff)
	}
	for _, name := range names[:50] {
		h.change(t, store, p, name, comply)
	}
	if diff := cmp.Diff(map[string]int64{same: 200, other: 50}, h.acknowledged(t, p, same, other)); diff != "" {
		t.Errorf("after ChangeShadow (-want +got):\n%s", diff)
	}
	if later := cuts.Load() - lost; lost < 10 || later < 50 {
		t.Errorf("%d and %d answers were lost: the test shows nothing", lost, later)
	}
}

// TestImportDuringTask : a newer shadow from a file takes the place of one that tasks have
// changed. The tasks are not carried out again, and what devices have acknowledged before
// and acknowledge after counts once.
func TestImportDuringTask(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	names := []string{"a", "b", "c"}
	for _, name := range names {
		h.Create(t, p, fleettest.Device{Name: name})
	}
	u := update(t, "task", `{"state":"open"}`)
	h.applyAll(t, h.store, p, u, names)
	h.change(t, h.store, p, "a", comply)
	wantCounts := func(when string, want map[string]int64) {
		t.Helper()
		if diff := cmp.Diff(want, h.acknowledged(t, p, "task")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	wantCounts("before", map[string]int64{"task": 1})

	file := []Device{versioned("new", 7)}
	for _, name := range names {
		file = append(file, versioned(name, 7))
	}
	if sum, err := h.store.Import(t.Context(), p, given(file...)); err != nil || sum != (ImportSummary{Added: 1, Updated: 3}) {
		t.Fatalf("import: %+v, error %v", sum, err)
	}
	wantCounts("an import is not the word of a device", map[string]int64{"task": 1})
	for i, name := range names {
		is := h.Shadow(t, p, name)
		want := fleet.Shadow{Stored: versioned(name, 7).Shadow.Stored, AppliedTasks: []string{"task"}}
		if i == 0 {
			want.Acknowledged = 1
		}
		if diff := cmp.Diff(want, is); diff != "" {
			t.Errorf("device %s after the import (-want +got):\n%s", name, diff)
		}
	}

	h.applyAnyDelta(t, h.store, p, u, names) // as after a crash
	for _, name := range names {
		if is := h.Shadow(t, p, name); is.Version != 7 || len(is.AppliedTasks) != 1 {
			t.Errorf("device %s has version %d of the tasks %q, want 7 of one: it was changed twice", name, is.Version, is.AppliedTasks)
		}
		h.change(t, h.store, p, name, comply)
	}
	wantCounts("after all have reported", map[string]int64{"task": 3})
	h.wantCounted(t, p, []string{"task"})
}

// TestAcknowledgedDeleted : what is counted of a task goes with its results, also where
// it has none.
func TestAcknowledgedDeleted(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	h.Create(t, p, fleettest.Device{Name: "early"}, fleettest.Device{Name: "late"})
	for _, uid := range []string{"one", "two"} {
		h.applyAll(t, h.store, p, update(t, uid, `{"state":"open"}`), []string{"early", "late"})
	}
	h.change(t, h.store, p, "early", comply)
	results := h.store.Results()
	for _, uid := range []string{"three", "two"} {
		h.take(t, uid, epoch, "", 0)
		if err := results.Record(t.Context(), uid, p, fleet.ResultRange{Succeeded: []string{"early"}, At: time.UnixMilli(1), Epoch: epoch}); err != nil {
			t.Fatal(err)
		}
	}
	tasks := func(want ...string) {
		t.Helper()
		if got := h.keptUIDs(t); !slices.Equal(got, want) {
			t.Errorf("tasks %q, want %q", got, want)
		}
	}
	tasks("one", "three", "two")
	for _, uid := range []string{"one", "three"} {
		h.remove(t, uid)
	}
	tasks("two")
	if diff := cmp.Diff(map[string]int64{"two": 1}, h.acknowledged(t, p, "one", "two")); diff != "" {
		t.Errorf("after Delete (-want +got):\n%s", diff)
	}
	h.change(t, h.store, p, "late", comply)
	tasks("one", "two")
}

// applyAnyDelta applies an update as the executor does, whatever is in the deltas.
func (h *harness) applyAnyDelta(t testing.TB, store *Store, p fleet.Product, u fleet.DesiredUpdate, names []string) {
	t.Helper()
	var last error
	for range 200 {
		var again []string
		for i, result := range store.ApplyDesired(t.Context(), p, u, names) {
			if result.Err != nil {
				again, last = append(again, names[i]), result.Err
			}
		}
		if names = again; len(names) == 0 {
			return
		}
		if _, ok := errors.AsType[*fleet.DeviceError](last); ok {
			break
		}
	}
	t.Errorf("%d devices never got the update: %v", len(names), last)
}

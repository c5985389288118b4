package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/shadow"
)

func update(t testing.TB, uid, patch string) fleet.DesiredUpdate {
	t.Helper()
	object, err := shadow.ParseDesired(patch)
	if err != nil {
		t.Fatal(err)
	}
	return fleet.DesiredUpdate{TaskUID: uid, Patch: object, Now: time.UnixMilli(1700000000123)}
}

// randomObject makes an object of few keys and values, so that they meet.
func randomObject(random *rand.Rand, depth int, nulls bool) string {
	object := map[string]any{}
	for _, key := range []string{"a", "b", "version", "timestamp"} {
		switch random.IntN(7) {
		case 0:
			object[key] = json.Number([]string{"1", "1.0", "12345678901234567890", "-0", "1e400"}[random.IntN(5)])
		case 1:
			object[key] = []any{true, "<&>\u2028é"}[random.IntN(2)]
		case 2:
			if depth > 0 {
				object[key] = json.RawMessage(randomObject(random, depth-1, nulls))
			}
		case 3:
			if nulls {
				object[key] = nil
			}
		case 4:
			object[key] = []any{json.Number("1"), map[string]any{"version": json.Number("7")}}
		}
	}
	text, err := json.Marshal(object)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func randomShadow(random *rand.Rand) fleet.Shadow {
	stored := shadow.Stored{Version: random.Int64N(4), Timestamp: 1600000000000 + random.Int64N(2)}
	for _, part := range []*string{&stored.Reported, &stored.Desired} {
		if random.IntN(3) > 0 {
			*part = randomObject(random, 2, false)
		}
	}
	if random.IntN(2) == 0 {
		stored.Metadata = `{"reported":` + randomObject(random, 1, false) + `,"desired":` + randomObject(random, 1, false) + `}`
	}
	if random.IntN(20) == 0 {
		stored.Desired = []string{"open", "[]", `{"a":`, `{"a":{"a":{"a":{"a":{"a":{}}}}}}`, `{"a":"` + strings.Repeat("x", 16300) + `"}`}[random.IntN(5)]
	}
	if doc, err := shadow.Parse(stored); err == nil {
		stored = doc.Stored() // as everybody stores it
	}
	var tasks []string
	for i := range random.IntN(17) {
		tasks = append(tasks, fmt.Sprint("other-", i))
	}
	if random.IntN(5) == 0 && len(tasks) > 0 {
		tasks[random.IntN(len(tasks))] = "task"
	}
	return fleet.Shadow{Stored: stored, AppliedTasks: tasks, Acknowledged: random.IntN(len(tasks) + 1)}
}

// TestApplyAsThePureRules compares what the store makes of random shadows with what
// fleet.DesiredUpdate.Apply makes of each.
func TestApplyAsThePureRules(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	random := rand.New(rand.NewPCG(5, 6))
	var acknowledged, forgotten int64
	for range 8 {
		p := h.Product(t)
		var devices []fleettest.Device
		var names []string
		for i := range 150 {
			d := fleettest.Device{Name: fmt.Sprint("device-", i), Shadow: randomShadow(random)}
			if i%3 == 1 { // as another but for the version
				d.Shadow = devices[i-1].Shadow
				d.Shadow.Version = random.Int64N(1000)
			}
			devices, names = append(devices, d), append(names, d.Name)
		}
		h.Create(t, p, devices...)
		u := update(t, "task", randomObject(random, 2, true))
		random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		names = append(names, names[0], "never-was", "a/b", "")
		more, less := h.applyAsThePureRules(t, p, u, devices, names)
		acknowledged, forgotten = acknowledged+more, forgotten+less
		if t.Failed() {
			return
		}
	}
	if acknowledged < 100 || forgotten < 10 {
		t.Errorf("%d acknowledgements, %d that were forgotten: the test shows nothing", acknowledged, forgotten)
	}
}

// applyAsThePureRules applies an update to the devices of these names, and compares what
// becomes of each with what fleet.DesiredUpdate.Apply makes of it. It returns how many
// tasks were acknowledged by that, and how many devices have forgotten some.
func (h *harness) applyAsThePureRules(t *testing.T, p fleet.Product, u fleet.DesiredUpdate, devices []fleettest.Device, names []string) (acknowledged, forgotten int64) {
	t.Helper()
	results := h.store.ApplyDesired(t.Context(), p, u, names)
	counts := map[string]int64{}
	for i, name := range names {
		at := slices.IndexFunc(devices, func(d fleettest.Device) bool { return d.Name == name })
		if at < 0 {
			if !errors.Is(results[i].Err, fleet.ErrDeviceGone) {
				t.Errorf("%q: error %v, want ErrDeviceGone", name, results[i].Err)
			}
			continue
		}
		was := devices[at].Shadow
		want, wantErr := u.Apply(was)
		if wantErr != nil {
			want.Shadow = was
		}
		if i == slices.Index(names, name) { // once for each
			for _, uid := range acknowledges(was, want.Shadow) {
				counts[uid]++
				acknowledged++
			}
			if want.Shadow.Acknowledged < was.Acknowledged {
				forgotten++
			}
		}
		if fmt.Sprint(results[i].Err) != fmt.Sprint(wantErr) {
			t.Errorf("%s: error %v, want %v", name, results[i].Err, wantErr)
		}
		if diff := cmp.Diff(string(want.Delta), string(results[i].Delta)); diff != "" {
			t.Errorf("%s: delta (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(want.Shadow, h.Shadow(t, p, name), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: shadow (-want +got):\n%s", name, diff)
		}
	}
	if diff := cmp.Diff(counts, h.acknowledged(t, p, "task")); diff != "" {
		t.Errorf("devices that have acknowledged tasks (-want +got):\n%s", diff)
	}
	return acknowledged, forgotten
}

// TestBadRowsFailAlone : the server refuses a whole statement for one of its rows.
func TestBadRowsFailAlone(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	names := h.seed(t, p, 1000)
	bad := []string{names[0], names[511], names[512], names[999]}
	for _, name := range bad {
		h.exec(t, `UPDATE batchtask_device SET version = $4`+this, p.Namespace, p.ProductID, name, int64(math.MaxInt64))
	}
	for i, result := range h.store.ApplyDesired(t.Context(), p, update(t, "task", `{"state":"open"}`), names) {
		reason, want := "", ""
		if slices.Contains(bad, names[i]) {
			want = v1alpha1.ReasonInvalidShadow
		}
		if deviceErr, ok := errors.AsType[*fleet.DeviceError](result.Err); ok {
			reason = deviceErr.Reason
		}
		if reason != want || (result.Err == nil) != (want == "") {
			t.Errorf("%s: error %v, want reason %q", names[i], result.Err, want)
		}
		if (result.Delta != nil) != (result.Err == nil) {
			t.Errorf("%s: delta %.100s", names[i], result.Delta)
		}
	}
	h.wantApplied(t, p, "task", 996)
}

// wantApplied says how many devices remember the task, each with a version that has
// grown by one from that of seed.
func (h *harness) wantApplied(t testing.TB, p fleet.Product, uid string, want int) {
	t.Helper()
	var applied, exact int
	err := h.pool.QueryRow(t.Context(), `SELECT count(*), count(*) FILTER (WHERE version = substr(device_name, 8)::bigint % 1000 + 2 AND cardinality(array_positions(applied_tasks, $3)) = 1)
		FROM batchtask_device WHERE namespace = $1 AND product_id = $2 AND $3 = ANY (applied_tasks)`, p.Namespace, p.ProductID, uid).Scan(&applied, &exact)
	if err != nil {
		t.Fatal(err)
	}
	if applied != want || exact != want {
		t.Errorf("%d shadows have the update, %d of them exactly once; want %d", applied, exact, want)
	}
}

// TestApplySparse : devices far from each other are found too.
func TestApplySparse(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	names := h.seed(t, p, 3000)
	for _, every := range []int{2, 7, 1000} {
		var some []string
		for i := every - 1; i < len(names); i += every {
			some = append(some, names[i])
		}
		uid := fmt.Sprint("task-", every)
		for i, result := range h.store.ApplyDesired(t.Context(), p, update(t, uid, `{"state":"open"}`), some) {
			if result.Err != nil || result.Delta == nil {
				t.Errorf("%s: delta %s, error %v", some[i], result.Delta, result.Err)
			}
		}
		var applied int
		if err := h.pool.QueryRow(t.Context(), `SELECT count(*) FROM batchtask_device WHERE $1 = ANY (applied_tasks)`, uid).Scan(&applied); err != nil || applied != len(some) {
			t.Errorf("every %d: %d shadows (error %v), want %d", every, applied, err, len(some))
		}
	}
}

// TestApplyWithoutDeadlock lets tasks write the same devices at once, in chunks that
// overlap, and devices report meanwhile.
func TestApplyWithoutDeadlock(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	names := h.seed(t, p, 600)
	const tasks = 6
	var writers sync.WaitGroup
	for i := range tasks {
		writers.Go(func() {
			own := slices.Clone(names)
			rand.New(rand.NewPCG(uint64(i), 1)).Shuffle(len(own), func(a, b int) { own[a], own[b] = own[b], own[a] })
			for chunk := range slices.Chunk(own, 200) {
				h.applyAll(t, h.store, p, update(t, fmt.Sprint("task-", i), fmt.Sprintf(`{"field-%d":1}`, i)), chunk)
			}
		})
	}
	writers.Wait()
	var exact, deadlocks int
	err := h.pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE version = substr(device_name, 8)::bigint % 1000 + 1 + $1 AND cardinality(applied_tasks) = 2 + $1),
		(SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()) FROM batchtask_device`, tasks).Scan(&exact, &deadlocks)
	if err != nil || exact != len(names) || deadlocks != 0 {
		t.Errorf("%d shadows are exact, %d deadlocks, error %v; want %d and none", exact, deadlocks, err, len(names))
	}
}

// applyAll applies an update as the executor does: what fails for a passing reason is
// tried again.
func (h *harness) applyAll(t testing.TB, store *Store, p fleet.Product, u fleet.DesiredUpdate, names []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(names) > 0 {
		var again []string
		var last error
		for i, result := range store.ApplyDesired(ctx, p, u, names) {
			switch {
			case result.Err == nil && result.Delta != nil:
			case result.Err == nil || errors.Is(result.Err, fleet.ErrDeviceGone) || refused(result.Err):
				t.Errorf("%s: delta %s, error %v", names[i], result.Delta, result.Err)
			default:
				again, last = append(again, names[i]), result.Err
			}
		}
		if names = again; len(names) == 0 {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Errorf("%d devices never got the update: %v", len(names), last)
			return
		}
	}
}

// TestNamespacesApart : the same product ID and the same names in two namespaces.
func TestNamespacesApart(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	one, other := h.Product(t), h.Product(t)
	names := h.seed(t, one, 10)
	h.seed(t, other, 10)
	h.applyAll(t, h.store, one, update(t, "task", `{"state":"open"}`), names)
	h.wantApplied(t, one, "task", 10)
	h.wantApplied(t, other, "task", 0)
	if err := h.store.ChangeShadow(t.Context(), other, names[0], func(was fleet.Shadow) (fleet.Shadow, error) {
		was.Version = 100
		return was, nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := h.Shadow(t, one, names[0]); got.Version != 2 {
		t.Errorf("version %d, want 2: a change in another namespace shows", got.Version)
	}
	if sum, err := h.store.Import(t.Context(), one, given(Device{Name: names[0], Disabled: true})); err != nil || sum.Updated != 1 {
		t.Errorf("import: %+v, error %v", sum, err)
	}
	if n, err := h.store.Count(t.Context(), fleet.Query{Product: other}); err != nil || n != 10 {
		t.Errorf("Count %d (error %v), want 10", n, err)
	}
}

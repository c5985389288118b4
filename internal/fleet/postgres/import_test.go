package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

// versioned is a device with a shadow of that version.
func versioned(name string, version int64) Device {
	return Device{Name: name, Shadow: shadowOf(`{"n":1}`, version)}
}

// adding begins to add a device past the store, and returns the session that does and what
// ends that.
func (h *harness) adding(t *testing.T, p fleet.Product, d Device) (session uint32, commit func()) {
	t.Helper()
	tx, err := h.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }) // where the test has failed
	columns := append([]string{"namespace", "product_id"}, importColumns...)
	_, err = tx.CopyFrom(t.Context(), pgx.Identifier{"batchtask_device"}, columns, pgx.CopyFromRows([][]any{append([]any{p.Namespace, p.ProductID}, importValues(d)...)}))
	if err != nil {
		t.Fatal(err)
	}
	return tx.Conn().PgConn().PID(), func() {
		t.Helper()
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// waitForWaiting waits until a session of the store waits for another one, in an import
// that has not ended.
func (h *harness) waitForWaiting(t *testing.T, ended <-chan importResult, other uint32) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && len(ended) == 0; time.Sleep(time.Millisecond) {
		var n int
		err := h.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND $2 = ANY (pg_blocking_pids(pid))`, DefaultApplicationName, other).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			return
		}
	}
	t.Fatal("nobody waits for that session")
}

type importResult struct {
	sum ImportSummary
	err error
}

func startImport(t *testing.T, store *Store, p fleet.Product, devices []Device) <-chan importResult {
	ended := make(chan importResult, 1)
	go func() {
		sum, err := store.Import(t.Context(), p, given(devices...))
		ended <- importResult{sum, err}
	}()
	return ended
}

// TestImportMeetsOthers : devices of a chunk are added by somebody else after it was
// found that none is there, and again after those that are there were locked.
func TestImportMeetsOthers(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	store := open(t, Options{URL: h.url})
	var devices []Device
	for i := range 3000 {
		devices = append(devices, versioned(deviceName(i), 2))
	}
	first, newer := h.adding(t, p, versioned(deviceName(1500), 3))
	second, older := h.adding(t, p, versioned(deviceName(2500), 1))
	ended := startImport(t, store, p, devices)
	h.waitForWaiting(t, ended, first) // for the newer, which is copied
	newer()
	h.waitForWaiting(t, ended, second) // for the older, which is merged
	older()
	got := <-ended
	if want := (importResult{sum: ImportSummary{Added: 2998, Updated: 1, Unchanged: 1}}); got != want {
		t.Errorf("it ended with %+v, want %+v", got, want)
	}
	for _, d := range h.export(t, p) {
		want := int64(2)
		if d.Name == deviceName(1500) {
			want = 3
		}
		if d.Shadow.Version != want {
			t.Errorf("device %s has version %d, want %d", d.Name, d.Shadow.Version, want)
		}
	}
}

// TestImportAtTheSameTime : however many import the same devices, each is added once; also
// where the role wants its transactions to look as if one came after the other.
func TestImportAtTheSameTime(t *testing.T) {
	server := pgtest.Start(t)
	for _, isolation := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(isolation, func(t *testing.T) {
			h := newHarness(t, server)
			h.all(t, fmt.Sprintf(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I SET default_transaction_isolation = %%L', current_database(), '%s'); END $$`, isolation))
			p := h.Product(t)
			const importers, devices, imports = 4, 300, 5
			var added atomic.Int64
			var all sync.WaitGroup
			for i := range importers {
				store := open(t, Options{URL: h.url})
				random := rand.New(rand.NewPCG(uint64(i), 1))
				all.Go(func() {
					own := make([]Device, devices*imports)
					for i := range own {
						own[i] = versioned(deviceName(i), 1)
					}
					// Parts that overlap, and each in an order of its own.
					for from := 0; from < len(own); from += devices / 2 {
						part := slices.Clone(own[from:min(from+devices, len(own))])
						random.Shuffle(len(part), func(a, b int) { part[a], part[b] = part[b], part[a] })
						sum, err := store.Import(t.Context(), p, given(part...))
						if err != nil || sum.Updated != 0 || sum.Added+sum.Unchanged != int64(len(part)) {
							t.Errorf("import of %d: %+v, error %v", len(part), sum, err)
						}
						added.Add(sum.Added)
					}
				})
			}
			all.Wait()
			if added.Load() != devices*imports {
				t.Errorf("%d devices were added, want %d", added.Load(), devices*imports)
			}
			var deadlocks int
			if err := h.pool.QueryRow(t.Context(), `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`).Scan(&deadlocks); err != nil || deadlocks != 0 {
				t.Errorf("%d deadlocks (error %v)", deadlocks, err)
			}
		})
	}
}

// TestImportLeavesOthersAlone : devices that need no change are not locked.
func TestImportLeavesOthersAlone(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	devices := []Device{versioned("a", 2), versioned("c", 2)}
	if _, err := h.store.Import(t.Context(), p, given(devices...)); err != nil {
		t.Fatal(err)
	}
	tx, err := h.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM batchtask_device WHERE namespace = $1 AND device_name = 'a' FOR UPDATE`, p.Namespace); err != nil {
		t.Fatal(err)
	}
	sum, err := h.store.Import(t.Context(), p, given(devices[0], Device{Name: "b"}, versioned("c", 3)))
	if want := (ImportSummary{Added: 1, Updated: 1, Unchanged: 1}); err != nil || sum != want {
		t.Errorf("%+v, error %v; want %+v", sum, err, want)
	}
}

// TestImportRefused : the server refuses one device of a chunk. That chunk is left out
// and those before it stay, whatever else is found wrong meanwhile.
func TestImportRefused(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	var before []Device
	for i := range importChunk {
		before = append(before, Device{Name: deviceName(i)})
	}
	bad := Device{Name: "y", Shadow: shadowOf(`{"n":1}`, 1)}
	bad.Shadow.Metadata = `{"reported":{"` + string(slices.Repeat([]byte("x"), 600_000)) + `":{"timestamp":1}}}`
	own := errors.New("the file has ended early")
	tests := map[string]struct {
		chunk []Device // with bad
		then  error    // of what comes after
		want  func(error) bool
	}{
		"copied":                 {[]Device{{Name: "x"}, bad, {Name: "z"}}, nil, refused},
		"merged":                 {[]Device{{Name: "x"}, bad, {Name: deviceName(0), Disabled: true}}, nil, refused},
		"before another mistake": {[]Device{bad}, own, refused},
		"another mistake alone":  {nil, own, func(err error) bool { return errors.Is(err, own) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := h.Product(t)
			sum, err := h.store.Import(t.Context(), p, func(yield func(Device, error) bool) {
				for _, d := range slices.Concat(before, tt.chunk) {
					if !yield(d, nil) {
						return
					}
				}
				// Enough that the chunk before is on its way.
				for i := range importChunk {
					if tt.then == nil || !yield(Device{Name: fmt.Sprint("later-", i)}, nil) {
						return
					}
				}
				yield(Device{}, tt.then)
			})
			want := ImportSummary{Added: importChunk}
			if !tt.want(err) || sum != want {
				t.Errorf("%+v, error %v, want %+v", sum, err, want)
			}
			all := h.export(t, p)
			if len(all) != importChunk || all[0].Disabled {
				t.Errorf("%d devices are there, want %d, the first as it was", len(all), importChunk)
			}
		})
	}
}

// TestImportOneAhead : while a chunk is written the next is prepared, and no more.
func TestImportOneAhead(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	store := open(t, Options{URL: h.url})
	other, commit := h.adding(t, p, Device{Name: deviceName(1)})
	var taken atomic.Int64
	var devices []Device
	for i := range 3 * importChunk {
		devices = append(devices, Device{Name: deviceName(i)})
	}
	ended := make(chan importResult, 1)
	go func() {
		sum, err := store.Import(t.Context(), p, func(yield func(Device, error) bool) {
			for _, d := range devices {
				taken.Add(1)
				if !yield(d, nil) {
					return
				}
			}
		})
		ended <- importResult{sum, err}
	}()
	const ahead = 2*importChunk + 1
	waitFor(t, &taken, ahead)
	h.waitForWaiting(t, ended, other)
	if taken.Load() != ahead {
		t.Errorf("%d devices were taken while the first chunk is written, want %d", taken.Load(), ahead)
	}
	commit()
	if got, want := <-ended, (importResult{sum: ImportSummary{Added: 3*importChunk - 1, Unchanged: 1}}); got != want {
		t.Errorf("it ended with %+v, want %+v", got, want)
	}
}

// TestImportManyDocuments : more than are remembered, each of them is stored in its own
// canonical form.
func TestImportManyDocuments(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	const n = 3 * mostKnown
	var devices, want []Device
	for i := range n {
		battery := i % (mostKnown + 10) // known again, and forgotten before
		d := Device{Name: deviceName(i), Shadow: shadowOf(fmt.Sprintf(`{"x": %d,"b":1}`, battery), 1)}
		devices = append(devices, d)
		d.Shadow.Reported = fmt.Sprintf(`{"b":1,"x":%d}`, battery)
		want = append(want, d)
	}
	if sum, err := h.store.Import(t.Context(), p, given(devices...)); err != nil || sum.Added != n {
		t.Fatalf("%+v, error %v", sum, err)
	}
	if diff := cmp.Diff(want, h.export(t, p)); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
}

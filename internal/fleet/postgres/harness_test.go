package postgres

import (
	"cmp"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/shadow"
)

func TestConformance(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	fleettest.Run(t, func(*testing.T) fleettest.Harness { return h }) // each test has a product of its own
}

// harness is a store over a database of its own, in which each product has a
// namespace of its own.
type harness struct {
	url   string
	store *Store
	pool  *pgxpool.Pool // past the store
}

var products atomic.Int64

func newHarness(t testing.TB, server *pgtest.Server) *harness {
	t.Helper()
	url := server.Database(t)
	return &harness{url: url, store: open(t, Options{URL: url}), pool: connect(t, url)}
}

// patient gives a server on a busy machine the time that it may take, where the test
// does not say otherwise. A deadlock ends sooner than that wait for a lock.
func patient(o Options) Options {
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, time.Minute)
	o.LockTimeout = cmp.Or(o.LockTimeout, 25*time.Second)
	return o
}

// open returns a store that is closed when the test ends.
func open(t testing.TB, o Options) *Store {
	t.Helper()
	store, err := Open(t.Context(), patient(o))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

func connect(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func (h *harness) Store() fleet.Store { return h.store }

func (h *harness) Product(testing.TB) fleet.Product {
	return fleet.Product{Namespace: fmt.Sprint("namespace-", products.Add(1)), ProductID: "ABCDE12345"}
}

// exec runs a statement that must change one row or, if it makes something, any.
func (h *harness) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	tag, err := h.pool.Exec(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("running %s: %v", sql, err)
	}
	if (tag.Update() || tag.Delete()) && tag.RowsAffected() != 1 {
		t.Fatalf("running %s: %d rows were changed, want one", sql, tag.RowsAffected())
	}
}

func (h *harness) Create(t testing.TB, p fleet.Product, devices ...fleettest.Device) {
	t.Helper()
	for _, d := range devices {
		tasks := append([]string{}, d.Shadow.AppliedTasks...)
		h.exec(t, `INSERT INTO batchtask_device (namespace, product_id, device_name, disabled, reported, desired, metadata, version, changed_ms, applied_tasks, acknowledged)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`, p.Namespace, p.ProductID, d.Name, d.Disabled,
			d.Shadow.Reported, d.Shadow.Desired, d.Shadow.Metadata, d.Shadow.Version, d.Shadow.Timestamp, tasks, d.Shadow.Acknowledged)
	}
}

const this = ` WHERE namespace = $1 AND product_id = $2 AND device_name = $3`

func (h *harness) Delete(t testing.TB, p fleet.Product, name string) {
	t.Helper()
	h.exec(t, `DELETE FROM batchtask_device`+this, p.Namespace, p.ProductID, name)
}

func (h *harness) SetDisabled(t testing.TB, p fleet.Product, name string, disabled bool) {
	t.Helper()
	h.exec(t, `UPDATE batchtask_device SET disabled = $4`+this, p.Namespace, p.ProductID, name, disabled)
}

func (h *harness) Report(t testing.TB, p fleet.Product, name, reported string) {
	t.Helper()
	h.exec(t, `UPDATE batchtask_device SET reported = $4, version = version + 1, changed_ms = $5`+this,
		p.Namespace, p.ProductID, name, reported, time.Now().UnixMilli())
}

func (h *harness) Shadow(t testing.TB, p fleet.Product, name string) (s fleet.Shadow) {
	t.Helper()
	err := h.pool.QueryRow(t.Context(), `SELECT reported, desired, metadata, version, changed_ms, applied_tasks, acknowledged FROM batchtask_device`+this,
		p.Namespace, p.ProductID, name).Scan(&s.Reported, &s.Desired, &s.Metadata, &s.Version, &s.Timestamp, &s.AppliedTasks, &s.Acknowledged)
	if err != nil {
		t.Fatalf("reading the shadow of device %s: %v", name, err)
	}
	return s
}

// seed makes n devices at once, named device-0000000 and so on, with the shadow that
// most devices of a product have.
func (h *harness) seed(t testing.TB, p fleet.Product, n int) []string {
	t.Helper()
	devices, names := make([]Device, n), make([]string, n)
	for i := range devices {
		d := seeded(i, 90)
		d.Shadow.Version = int64(i%1000 + 1)
		d.Shadow.AppliedTasks = []string{"5e0f4fca-5b7c-4a5c-9a8e-0d6a3c1f2b10", "5e0f4fca-5b7c-4a5c-9a8e-0d6a3c1f2b11"}
		devices[i], names[i] = d, d.Name
	}
	h.copyInto(t, "batchtask_device", p, devices)
	return names
}

// seeded is the device of that number, with that number as its battery.
func seeded(i, battery int) Device {
	return Device{Name: deviceName(i), Shadow: fleet.Shadow{Stored: shadow.Stored{
		Reported:  fmt.Sprintf(`{"battery":%d,"firmware":"4.2.11","position":{"lat":52.3702,"lon":4.8952},"state":"closed"}`, battery),
		Desired:   `{"state":"closed"}`,
		Metadata:  `{"reported":{"battery":{"timestamp":1700000000000},"firmware":{"timestamp":1690000000000},"position":{"lat":{"timestamp":1700000000000},"lon":{"timestamp":1700000000000}},"state":{"timestamp":1700000000000}},"desired":{"state":{"timestamp":1695000000000}}}`,
		Version:   1,
		Timestamp: 1700000000000,
	}}}
}

// copyInto writes devices to a table as they are.
func (h *harness) copyInto(t testing.TB, table string, p fleet.Product, devices []Device) {
	t.Helper()
	columns := []string{"namespace", "product_id", "device_name", "reported", "desired", "metadata", "version", "changed_ms", "applied_tasks"}
	_, err := h.pool.CopyFrom(t.Context(), pgx.Identifier{table}, columns, pgx.CopyFromSlice(len(devices), func(i int) ([]any, error) {
		d := devices[i]
		tasks := append([]string{}, d.Shadow.AppliedTasks...)
		return []any{p.Namespace, p.ProductID, d.Name, d.Shadow.Reported, d.Shadow.Desired, d.Shadow.Metadata, d.Shadow.Version, d.Shadow.Timestamp, tasks}, nil
	}))
	if err != nil {
		t.Fatalf("making devices: %v", err)
	}
}

func deviceName(i int) string { return fmt.Sprintf("device-%07d", i) }

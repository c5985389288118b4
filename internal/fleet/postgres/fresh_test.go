package postgres

import (
	"testing"
	"time"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/shadow"
)

// A task that begins right after an import, when the server knows nothing of the
// table yet, is no slower than one that begins later; whatever the names are.
func TestFreshlyImported(t *testing.T) {
	server := pgtest.Start(t, pgtest.WithSetting("autovacuum", "off"))
	url := server.Database(t)
	store := open(t, Options{URL: url})
	p := fleet.Product{Namespace: "namespace", ProductID: "ABCDE12345"}
	const devices, batch = 20_000, 256
	var names []string
	if _, err := store.Import(t.Context(), p, func(yield func(Device, error) bool) {
		for i := range devices {
			names = append(names, deviceName(i))
			if !yield(Device{Name: deviceName(i)}, nil) {
				return
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	patch, err := shadow.ParseDesired(`{"state":"open"}`)
	if err != nil {
		t.Fatal(err)
	}
	apply := func(uid string) time.Duration {
		u := fleet.DesiredUpdate{TaskUID: uid, Patch: patch, Now: time.UnixMilli(1)}
		var sparse []string
		for i := 0; len(sparse) < batch; i += devices / batch {
			sparse = append(sparse, names[i])
		}
		started := time.Now()
		for _, part := range [][]string{names[:batch], names[5*batch : 6*batch], sparse} {
			for i, r := range store.ApplyDesired(t.Context(), p, u, part) {
				if r.Err != nil {
					t.Fatalf("%s: %v", part[i], r.Err)
				}
			}
		}
		return time.Since(started)
	}
	fresh := min(apply("a"), apply("b"), apply("c"))
	if _, err := connect(t, url).Exec(t.Context(), "ANALYZE batchtask_device"); err != nil {
		t.Fatal(err)
	}
	known := min(apply("d"), apply("e"), apply("f"))
	t.Logf("%s before the server has looked at the table, %s after", fresh, known)
	if fresh > 10*known {
		t.Errorf("%s before the server has looked at the table, %s after: it goes through all devices for each", fresh, known)
	}
}

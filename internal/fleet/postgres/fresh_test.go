package postgres

import (
	"testing"
	"time"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/shadow"
)

// A task that begins right after an import, when the server knows nothing of the
// table yet, reads no more of it than one that begins later; whatever the names are.
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
	conn := connect(t, url)
	// rowsRead is how many rows of the table were ever read, when all sessions of the
	// store have ended: at its end each adds what it has read.
	rowsRead := func() (n int64) {
		store.Close()
		for sessions := 1; sessions > 0; {
			if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, DefaultApplicationName).Scan(&sessions); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.QueryRow(t.Context(), `SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'batchtask_device'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	apply := func(uid string) int64 {
		before := rowsRead()
		store = open(t, Options{URL: url})
		u := fleet.DesiredUpdate{TaskUID: uid, Patch: patch, Now: time.UnixMilli(1)}
		var sparse []string
		for i := 0; len(sparse) < batch; i += devices / batch {
			sparse = append(sparse, names[i])
		}
		for _, part := range [][]string{names[:batch], names[5*batch : 6*batch], sparse} {
			for i, r := range store.ApplyDesired(t.Context(), p, u, part) {
				if r.Err != nil {
					t.Fatalf("%s: %v", part[i], r.Err)
				}
			}
		}
		return rowsRead() - before
	}
	fresh := apply("a")
	if _, err := conn.Exec(t.Context(), "ANALYZE batchtask_device"); err != nil {
		t.Fatal(err)
	}
	known := apply("b")
	t.Logf("%d rows read before the server has looked at the table, %d after", fresh, known)
	if most := int64(10 * 3 * batch); fresh > most || known > most || known == 0 {
		t.Errorf("%d rows read before the server has looked at the table, %d after, want at most %d: it goes through all devices", fresh, known, most)
	}
}

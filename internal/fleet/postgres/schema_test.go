package postgres

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

func TestSchema(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t)

	_, err := Open(t.Context(), patient(Options{URL: url, KeepSchema: true}))
	wantSchema(t, err, SchemaError{Have: 0, Want: 3}, "needs version 3")
	var tables int
	conn := pgtest.Connect(t, url)
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&tables); err != nil || tables != 0 {
		t.Fatalf("%d tables were made, error %v: they were to be left as they are", tables, err)
	}

	// Replicas start at the same time.
	var replicas sync.WaitGroup
	for range 4 {
		replicas.Go(func() {
			store, err := Open(t.Context(), patient(Options{URL: url}))
			if err != nil {
				t.Error(err)
				return
			}
			store.Close()
		})
	}
	replicas.Wait()
	var rows int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM batchtask_schema_version WHERE version_id > 0`).Scan(&rows); err != nil || rows != 3 {
		t.Errorf("%d migrations were written down, error %v; want each once", rows, err)
	}
	open(t, Options{URL: url, KeepSchema: true})

	if _, err := conn.Exec(t.Context(), `INSERT INTO batchtask_schema_version (version_id, is_applied) VALUES (7, true)`); err != nil {
		t.Fatal(err)
	}
	for _, keep := range []bool{true, false} {
		_, err = Open(t.Context(), patient(Options{URL: url, KeepSchema: keep}))
		wantSchema(t, err, SchemaError{Have: 7, Want: 3}, "a newer program has changed them")
	}
	if _, err := conn.Exec(t.Context(), `DELETE FROM batchtask_schema_version WHERE version_id IN (3, 7)`); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), patient(Options{URL: url, KeepSchema: true}))
	wantSchema(t, err, SchemaError{Have: 2, Want: 3}, "let this one do it")
}

func wantSchema(t *testing.T, err error, want SchemaError, text string) {
	t.Helper()
	got, ok := errors.AsType[*SchemaError](err)
	if !ok || *got != want || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want %+v with %q", err, want, text)
	}
}

// A table of versions that has no end is not read to its end.
func TestEndlessVersions(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t)
	conn := pgtest.Connect(t, url)
	if _, err := conn.Exec(t.Context(), `CREATE TABLE `+versionTable+` AS SELECT n AS id, n::bigint AS version_id, false AS is_applied, now() AS tstamp FROM generate_series(1, 500000) AS n`); err != nil {
		t.Fatal(err)
	}
	store, err := Open(t.Context(), patient(Options{URL: url}))
	if err == nil {
		store.Close()
	}
	if !errors.Is(err, errTooLarge) {
		t.Errorf("error %v, want %v", err, errTooLarge)
	}
}

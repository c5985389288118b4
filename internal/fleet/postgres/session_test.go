package postgres

import (
	"errors"
	"strings"
	"testing"
	"time"

	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

// Behind PgBouncer as it comes, with a session for each connection, all is as without it.
func TestPgBouncer(t *testing.T) {
	server := pgtest.Start(t)
	h := newHarness(t, server)
	bouncer := pgtest.StartBouncer(t, server, "session")
	direct := h.store
	h.store = open(t, Options{URL: pgtest.URLVia(t, h.url, bouncer.Address())})
	fleettest.Run(t, func(*testing.T) fleettest.Harness { return h })

	for name, want := range map[string]string{"enable_seqscan": "off", "plan_cache_mode": "force_generic_plan", "statement_timeout": "30s"} {
		var got string
		if err := h.store.pool.QueryRow(t.Context(), "SHOW "+name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (error %v), want %q", name, got, err, want)
		}
	}
	// A connection whose session is that of another is not used.
	conn, err := h.store.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !pooled(conn.Conn().PgConn()) {
		t.Error("a connection by way of PgBouncer is taken for one to the server")
	}
	if _, err := conn.Exec(t.Context(), "SELECT set_config($1, 'of another', false)", sessionToken); err != nil {
		t.Fatal(err)
	}
	conn.Release()
	if err := h.store.Sync(t.Context(), ""); !errors.Is(err, errSessions) || Reason(err) != errSessions.Error() {
		t.Errorf("error %v, want %v", err, errSessions)
	}
	if err := h.store.Sync(t.Context(), ""); err != nil {
		t.Errorf("by another connection: %v", err)
	}
	if conn, err = direct.pool.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if pooled(conn.Conn().PgConn()) {
		t.Error("a connection to the server is taken for one by way of a pooler")
	}
}

// One that gives a session to whoever has a transaction is found out, and what it is told is
// what to do.
func TestPoolerWithoutSessions(t *testing.T) {
	server := pgtest.Start(t)
	for name, settings := range map[string][]string{
		"transaction":                 {"transaction"},
		"statement":                   {"statement"},
		"transaction, one at a time":  {"transaction", "default_pool_size=1"},
		"transaction, taken in turns": {"transaction", "server_round_robin=1"},
	} {
		t.Run(name, func(t *testing.T) {
			database := server.Database(t)
			bouncer := pgtest.StartBouncer(t, server, settings[0], settings[1:]...)
			_, err := Open(t.Context(), patient(Options{URL: pgtest.URLVia(t, database, bouncer.Address())}))
			if !errors.Is(err, errSessions) || Reason(err) != errSessions.Error() {
				t.Errorf("error %v, want %v", err, errSessions)
			}
			// Sessions that others get are left as they were.
			var seqscan string
			other := pgtest.Connect(t, pgtest.URLVia(t, database, bouncer.Address())+"&default_query_exec_mode=simple_protocol")
			if err := other.QueryRow(t.Context(), "SHOW enable_seqscan").Scan(&seqscan); err != nil || seqscan != "on" {
				t.Errorf("enable_seqscan is %q, %v", seqscan, err)
			}
		})
	}
}

// What a role has as its own settings changes nothing of what statements mean.
func TestSettingsOfTheRole(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t)
	server.Exec(t, `CREATE ROLE odd LOGIN SUPERUSER PASSWORD 'odd'`)
	for _, setting := range []string{
		"client_encoding = 'LATIN1'", "default_transaction_isolation = 'serializable'", "statement_timeout = '20s'", "enable_indexscan = off",
		"standard_conforming_strings = off", "plan_cache_mode = 'force_custom_plan'", "lock_timeout = '20s'",
	} {
		server.Exec(t, `ALTER ROLE odd SET `+setting)
	}
	store := open(t, Options{URL: strings.Replace(url, pgtest.User+":"+pgtest.Password, "odd:odd", 1), StatementTimeout: 90 * time.Second})
	for name, want := range map[string]string{
		"client_encoding": "UTF8", "default_transaction_isolation": "read committed", "statement_timeout": "90s", "enable_indexscan": "on",
		"standard_conforming_strings": "on", "plan_cache_mode": "force_generic_plan", "lock_timeout": "25s",
	} {
		var got string
		if err := store.pool.QueryRow(t.Context(), "SHOW "+name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (error %v), want %q", name, got, err, want)
		}
	}
}

// The tables are in the schema that the URL names, from the first connection on.
func TestSearchPath(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t)
	store := open(t, Options{URL: url})
	if _, err := store.pool.Exec(t.Context(), "CREATE SCHEMA elsewhere"); err != nil {
		t.Fatal(err)
	}
	other := open(t, Options{URL: url + "&search_path=elsewhere"})
	var schema string
	if err := other.pool.QueryRow(t.Context(), "SELECT current_schema()").Scan(&schema); err != nil || schema != "elsewhere" {
		t.Errorf("the schema is %q (error %v), want elsewhere", schema, err)
	}
	if err := store.pool.QueryRow(t.Context(), "SELECT 'elsewhere.batchtask_device'::regclass::text").Scan(&schema); err != nil {
		t.Errorf("the tables are not in the schema: %v", err)
	}
}

// A server that only lets read is refused where the URL asks for one that lets write.
func TestTargetSessionAttributes(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t)
	open(t, Options{URL: url + "&target_session_attrs=read-write"})
	open(t, Options{URL: url + "&target_session_attrs=primary"})
	server.Exec(t, `ALTER ROLE `+pgtest.User+` SET default_transaction_read_only = on`)
	if _, err := Open(t.Context(), patient(Options{URL: url + "&target_session_attrs=read-write"})); !errors.Is(err, errStandby) {
		t.Errorf("error %v, want %v", err, errStandby)
	}
}

package postgres

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

// TestURL : a URL says where a database is and nothing else, and no error shows a value.
func TestURL(t *testing.T) {
	const secret = "S3cretWord"
	for _, tt := range []struct{ url, want string }{
		{"", "does not begin with postgres://"},
		{"host=db user=u password=" + secret, "does not begin with postgres://"},
		{"mysql://u:" + secret + "@db/x", "does not begin with postgres://"},
		{"postgres://u:" + secret + "/@db/x", "cannot be read"},
		{"postgres://u:%" + secret + "@db/x", "cannot be read"},
		{"postgres://u:" + secret + "@db:port/x", "cannot be read"},
		{"postgres://u:a b" + secret + "@db/x\x7f", "cannot be read"},
		{"postgres://u:12?" + secret + "=1@db/x", "cannot be read"},
		{"postgres://u:12/" + secret + "@db/x", "cannot be read"},
		{"postgres://u:12#" + secret + "@db/x", "cannot be read"},
		{"postgres://u:12;" + secret + "@db/x?a;b", "cannot be read"},
		{"postgres://u:" + secret + "@db/x?sslmode=" + secret, "sslmode: must be one of disable, allow, prefer, require, verify-ca, verify-full"},
		{"postgres://u@db/x?sslmode=none&password=" + secret, "sslmode: must be one of"},
		{"postgres://u:" + secret + "@db/x?connect_timeout=" + secret, `"connect_timeout" is not taken; these are: application_name, channel_binding, dbname, host,`},
		{"postgres://u:" + secret + "@db/x?" + strings.Repeat(secret, 9) + "=1", `"…" is not taken`},
		{"postgres://u@db/x?sslmode=disable&sslmode=require", "sslmode: it is given twice"},
		{"postgres://u@db/x?host=" + secret, "host: it is given twice"},
		{"postgres://u:" + secret + "@/x", "host: it is missing"},
		{"postgres://db/x", "user: it is missing"},
		{"postgres://u@db:0/x", "port: must be 1 to 65535"},
		{"postgres://u@db/x?port=65536", "port: must be 1 to 65535"},
		{"postgres://u@a,b/x", "several hosts"},
		{"postgres://u@a:1,b:2/x", ""},
		{"postgres://u@/x?host=a,b", "host: must be one name or one address"},
		{"postgres://u@/x?host=/var/run/postgresql", "a Unix socket is not taken"},
		{"postgres://u@%2Fvar%2Frun/x", "cannot be read"},
		{"postgres://u@/x?host=C:\\pipe", "a Unix socket is not taken"},
		{"postgres://u@/x?host=@abstract", "cannot be read"},
		{"postgres://u@/x?host=%40abstract", "a Unix socket is not taken"},
		{"postgres://u@/x?user=other", "user: it is given twice"},
		{"postgres://u@db/x?sslnegotiation=direct", "direct needs the sslmode"},
		{"postgres://u@db/a%00b", "NUL"},
	} {
		_, err := Open(t.Context(), Options{URL: tt.url})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v, want one with %q", tt.url, err, tt.want)
		}
		if err != nil && Reason(err) != err.Error() {
			t.Errorf("%q: people are told %q, not %q", tt.url, Reason(err), err)
		}
		for err != nil {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%q: the error shows a value: %v", tt.url, err)
			}
			err = errors.Unwrap(err)
		}
	}
}

// No parameter of the driver, of its pool or of libpq gets past the list.
func TestURLTakesFewParameters(t *testing.T) {
	for _, key := range []string{
		"pool_max_conns", "pool_min_conns", "pool_min_idle_conns", "pool_max_conn_lifetime", "pool_max_conn_idle_time",
		"pool_health_check_period", "pool_max_conn_lifetime_jitter", "pool_ping_timeout",
		"default_query_exec_mode", "statement_cache_capacity", "description_cache_capacity",
		"sslcert", "sslkey", "sslrootcert", "sslpassword", "sslcertmode", "sslsni", "sslcrl", "sslinline", "ssl",
		"service", "servicefile", "passfile", "options", "hostaddr", "krbsrvname", "krbspn", "gssencmode",
		"connect_timeout", "keepalives", "min_protocol_version", "max_protocol_version", "replication", "timezone",
		"statement_timeout", "enable_seqscan", "session_replication_role", "SSLMODE", "database",
	} {
		_, err := parseURL("postgres://u:p@db/x?" + key + "=0s")
		if want := `the parameter "` + key + `" is not taken`; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", key, err, want)
		}
	}
}

func TestIdentity(t *testing.T) {
	identity := func(url string) string {
		t.Helper()
		text, err := Identity(url)
		if err != nil {
			t.Fatalf("%s: %v", url, err)
		}
		return text
	}
	const one = "postgres://u:p@db.example/x?sslmode=require&search_path=a"
	for _, same := range []string{
		"postgresql://u:p@DB.example:5432/x?search_path=a&sslmode=require",
		"postgres://db.example.?user=u&password=p&dbname=x&sslmode=require&search_path=a",
	} {
		if identity(same) != identity(one) {
			t.Errorf("%s is not the same database as %s", same, one)
		}
	}
	for _, other := range []string{
		"postgres://u:q@db.example/x?sslmode=require&search_path=a",
		"postgres://v:p@db.example/x?sslmode=require&search_path=a",
		"postgres://u:p@db.example/y?sslmode=require&search_path=a",
		"postgres://u:p@db.example:5433/x?sslmode=require&search_path=a",
		"postgres://u:p@db.example/x?sslmode=verify-full&search_path=a",
		"postgres://u:p@db.example/x?sslmode=require&search_path=b",
	} {
		if identity(other) == identity(one) {
			t.Errorf("%s is taken for %s", other, one)
		}
	}
}

// Neither the environment nor the home of the user says anything about a connection.
func TestEnvironmentDoesNotCount(t *testing.T) {
	server := pgtest.Start(t)
	database := server.Database(t)
	home := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("HOME", home)
	// Each of these files is one that the driver would stumble over, or use.
	for _, name := range []string{"postgresql.crt", "postgresql.key", "root.crt"} {
		write(filepath.Join(".postgresql", name), "no certificate")
	}
	write(".pg_service.conf", "[x]\nhost=nowhere.invalid\nuser=nobody\n")
	write(".pgpass", "*:*:*:*:"+pgtest.Password+"\n")
	for name, value := range map[string]string{
		"PGHOST": "nowhere.invalid", "PGPORT": "1", "PGUSER": "nobody", "PGPASSWORD": pgtest.Password, "PGDATABASE": "nothing", "PGSSLMODE": "bogus",
		"PGSSLCERT": "/no/such/file", "PGSSLKEY": "/no/such/file", "PGSSLROOTCERT": "/no/such/file", "PGOPTIONS": "-c statement_timeout=1",
		"PGCONNECT_TIMEOUT": "bogus", "PGTARGETSESSIONATTRS": "standby", "PGREQUIREAUTH": "none", "PGCHANNELBINDING": "require",
		"PGMINPROTOCOLVERSION": "9.9", "PGSSLCERTMODE": "require", "PGTZ": "bogus", "PGAPPNAME": "bogus",
	} {
		t.Setenv(name, value)
	}
	store := open(t, Options{URL: database})
	if err := store.Sync(t.Context(), ""); err != nil {
		t.Error(err)
	}
	// The password of another is not used.
	_, err := Open(t.Context(), patient(Options{URL: strings.Replace(database, ":"+pgtest.Password, "", 1)}))
	if err == nil || Reason(err) != reasonLogin {
		t.Errorf("without a password: %v, want that the login is refused", err)
	}
	t.Setenv("PGSERVICE", "x") // it counts as little
	if err := open(t, Options{URL: database}).Sync(t.Context(), ""); err != nil {
		t.Error(err)
	}
	t.Setenv("PGSERVICE", "missing")
	if _, err := Open(t.Context(), patient(Options{URL: database})); !errors.Is(err, errEnvironment) {
		t.Errorf("with PGSERVICE: %v, want %v", err, errEnvironment)
	}
}

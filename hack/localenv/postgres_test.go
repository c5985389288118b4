package localenv

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// The database answers only those who know its password, waits for the disk, and
// ends with the session though somebody is connected; nothing stays behind.
func TestPostgres(t *testing.T) {
	if _, err := FindPostgres(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	ctx, end := context.WithCancelCause(t.Context())
	defer end(nil)
	s := &session{Options: Options{Dir: t.TempDir()}, end: end, systemTemp: os.TempDir()}
	databaseURL, err := s.startPostgres(ctx)
	if err != nil {
		t.Fatal(errors.Join(err, s.stop()))
	}
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		t.Fatal(errors.Join(err, s.stop()))
	}
	defer func() { _ = conn.Close(ctx) }()
	var fsync string
	if err := conn.QueryRow(ctx, "SHOW fsync").Scan(&fsync); err != nil || fsync != "on" {
		t.Errorf("fsync is %q, error %v", fsync, err)
	}
	stranger := conn.Config().Copy()
	stranger.Password = "wrong"
	if c, err := pgx.ConnectConfig(ctx, stranger); err == nil {
		t.Error("a wrong password is accepted")
		_ = c.Close(ctx)
	}

	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if log, err := os.ReadFile(s.path("postgres.log")); !strings.Contains(string(log), "database system is shut down") {
		t.Errorf("it was killed: error %v, log %s", err, log)
	}
	if _, err := conn.Exec(ctx, "SELECT 1"); err == nil {
		t.Error("the database answers after the end")
	}
	if _, err := os.Stat(s.databaseDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its directory: %v, want none", err)
	}
}

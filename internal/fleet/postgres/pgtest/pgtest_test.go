package pgtest

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What was committed is there again after a kill, and the order of text is not that
// of bytes.
func TestKillAndRestart(t *testing.T) {
	s := Start(t)
	database := s.Database(t)
	conn := Connect(t, database)
	if _, err := conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT unnest(ARRAY['a', 'B']) AS name"); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Fatal("a server that was killed has answered")
	}
	s.Restart()
	var first string
	if err := Connect(t, database).QueryRow(t.Context(), "SELECT name FROM kept ORDER BY name").Scan(&first); err != nil {
		t.Fatal(err)
	}
	if first != "a" {
		t.Errorf("%q comes first: the default order is that of bytes", first)
	}
}

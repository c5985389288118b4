package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

func TestWrongPassword(t *testing.T) {
	server := pgtest.Start(t)
	u, err := url.Parse(server.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	const secret = "wrong-Word%/: 1"
	u.User = url.UserPassword(pgtest.User, secret)
	_, err = Open(t.Context(), patient(Options{URL: u.String()}))
	if err == nil || !strings.Contains(err.Error(), "password authentication failed") {
		t.Errorf("error %v, want that the password is wrong", err)
	}
	if text := fmt.Sprint(err); strings.Contains(text, "wrong-Word") || strings.Contains(text, pgtest.Password) {
		t.Errorf("the error shows the password: %s", text)
	}
	if _, ok := errors.AsType[*SchemaError](err); ok || refused(err) {
		t.Errorf("error %v is not passing", err)
	}
}

func TestOptions(t *testing.T) {
	server := pgtest.Start(t)
	store := open(t, Options{URL: server.Database(t) + "&application_name=mine", MaxConns: 2, StatementTimeout: 1500 * time.Millisecond, LockTimeout: time.Second})
	for name, want := range map[string]string{
		"application_name": "mine", "statement_timeout": "1500ms", "lock_timeout": "1s", "jit": "off", "client_encoding": "UTF8",
	} {
		var got string
		if err := store.pool.QueryRow(t.Context(), "SHOW "+name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (error %v), want %q", name, got, err, want)
		}
	}
	if got := store.pool.Config().MaxConns; got != 2 {
		t.Errorf("%d connections, want 2", got)
	}
}

func TestRefused(t *testing.T) {
	for code, want := range map[string]bool{
		"22021": true, "22003": true, "23514": true, "54000": true,
		"08006": false, "25006": false, "28P01": false, "40001": false, "40P01": false, "42P01": false, "53100": false,
		"53300": false, "55P03": false, "57014": false, "57P01": false, "57P03": false, "58030": false, "XX000": false,
	} {
		err := fmt.Errorf("wrapped: %w", failed("doing", &pgconn.PgError{Code: code, Message: "a value"}))
		_, isDevice := errors.AsType[*fleet.DeviceError](deviceError(err))
		if refused(err) != want || isDevice != want {
			t.Errorf("%s: refused %v, device error %v; want %v", code, refused(err), isDevice, want)
		}
	}
	if refused(context.Canceled) {
		t.Error("an ended context is not passing")
	}
}

// TestNoDocumentInErrors : the server quotes rows and values in what it says; the store
// does not.
func TestNoDocumentInErrors(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	h.Create(t, p, fleettest.Device{Name: "d"})
	const secret = "S3cretValue"
	for name, text := range map[string]string{
		"too large": `{"a":"` + strings.Repeat(secret, 8000) + `"}`,
		"NUL":       `{"a":"` + secret + "\x00" + `"}`,
		"no UTF-8":  `{"a":"` + secret + "\xff" + `"}`,
	} {
		err := h.store.ChangeShadow(t.Context(), p, "d", func(was fleet.Shadow) (fleet.Shadow, error) {
			was.Reported = text
			return was, nil
		})
		bad, ok := errors.AsType[*fleet.DeviceError](err)
		if !ok || bad.Reason != v1alpha1.ReasonInvalidShadow || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), "SQLSTATE") {
			t.Errorf("%s: error %.300v, want a DeviceError without the document", name, err)
		}
	}
	if got := h.Shadow(t, p, "d"); got.Reported != "" {
		t.Errorf("reported %.100s was stored", got.Reported)
	}
}

// TestLockTimeout : a row that somebody holds is no reason to wait for ever, and passing.
func TestLockTimeout(t *testing.T) {
	server := pgtest.Start(t)
	h := newHarness(t, server)
	p := h.Product(t)
	h.Create(t, p, fleettest.Device{Name: "d"})
	store := open(t, Options{URL: h.url, LockTimeout: 50 * time.Millisecond})
	tx, err := h.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM batchtask_device FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	got := store.ApplyDesired(t.Context(), p, update(t, "task", `{"a":1}`), []string{"d"})
	if server, ok := errors.AsType[*pgconn.PgError](got[0].Err); !ok || server.Code != "55P03" || refused(got[0].Err) {
		t.Errorf("error %v, want a passing one that the lock was not available", got[0].Err)
	}
}

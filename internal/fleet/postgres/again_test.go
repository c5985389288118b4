package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

// TestAgain : a change that the server has undone because of others is made again, a
// bounded number of times, and no other is.
func TestAgain(t *testing.T) {
	store := open(t, Options{URL: pgtest.Start(t).Database(t)})
	for _, tt := range []struct {
		code  string
		times int // that it fails
		calls int
	}{
		{"40001", 2, 3},
		{"40P01", againAttempts - 1, againAttempts},
		{"40P01", againAttempts + 1, againAttempts},
		{"23505", 1, 1},
	} {
		calls := 0
		err := store.again(t.Context(), "testing", func(context.Context) error {
			if calls++; calls <= tt.times {
				return fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: tt.code})
			}
			return nil
		})
		server, failed := errors.AsType[*pgconn.PgError](err)
		if calls != tt.calls || failed != (tt.times >= tt.calls) || failed && server.Code != tt.code {
			t.Errorf("%s, %d times: %d calls, error %v; want %d calls", tt.code, tt.times, calls, err, tt.calls)
		}
	}
}

// TestDeadlock : two transactions of the store that lock rows in different orders, as
// where the settings of the session do not count. The server undoes one of them, which is
// then made again.
func TestDeadlock(t *testing.T) {
	h := newHarness(t, pgtest.Start(t, pgtest.WithSetting("deadlock_timeout", "10ms")))
	p := h.Product(t)
	names := h.seed(t, p, 2)
	locked := make(chan struct{}, 2)
	both := make(chan struct{})
	ended := make(chan error, 2)
	var tries atomic.Int64
	for i := range 2 {
		attempts := 0
		go func() {
			ended <- h.store.again(t.Context(), "testing", func(ctx context.Context) error {
				attempts++
				tries.Add(1)
				return begin(ctx, h.store.pool, func(tx pgx.Tx) error {
					for at := range 2 {
						if _, err := tx.Exec(ctx, `UPDATE batchtask_device SET version = version + 1`+this, p.Namespace, p.ProductID, names[(at+i)%2]); err != nil {
							return err
						}
						if at == 0 && attempts == 1 {
							locked <- struct{}{}
							<-both
						}
					}
					return nil
				})
			})
		}()
	}
	<-locked
	<-locked
	close(both)
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if tries.Load() != 3 {
		t.Errorf("it took %d tries, want 3: one of both is undone", tries.Load())
	}
	for i, name := range names {
		if s := h.Shadow(t, p, name); s.Version != int64(i+3) {
			t.Errorf("%s has version %d, want %d", name, s.Version, i+3)
		}
	}
}

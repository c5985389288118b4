package postgres

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

// inChunks applies an update to all names as the executor does, and counts those that
// are done. It waits while as many are as limit says; nil is no limit.
func (h *harness) inChunks(t testing.TB, store *Store, p fleet.Product, u fleet.DesiredUpdate, names []string, done, limit *atomic.Int64) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for chunk := range slices.Chunk(names, 100) {
			for limit != nil && done.Load() >= limit.Load() {
				select {
				case <-t.Context().Done():
					return
				case <-time.After(time.Millisecond):
				}
			}
			h.applyAll(t, store, p, u, chunk)
			done.Add(int64(len(chunk)))
		}
	}()
	return ended
}

// waitFor waits until done has reached n.
func waitFor(t testing.TB, done *atomic.Int64, n int64) {
	t.Helper()
	deadline := time.After(time.Minute)
	for done.Load() < n {
		select {
		case <-deadline:
			t.Fatalf("%d devices are done after a minute, want %d", done.Load(), n)
		case <-time.After(time.Millisecond):
		}
	}
}

// TestLostAnswers : the server has committed, and the store does not learn of it.
func TestLostAnswers(t *testing.T) {
	server := pgtest.Start(t)
	h := newHarness(t, server)
	p := h.Product(t)
	names := h.seed(t, p, 3000)
	var statements, cuts atomic.Int64
	var recording atomic.Bool
	proxy := pgtest.StartProxy(t, server.Address(), func(tag string) bool {
		answer := strings.HasPrefix(tag, "UPDATE ") || tag == "COMMIT" || tag == "SELECT 1" && recording.Load()
		if !answer || statements.Add(1)%2 == 0 {
			return false
		}
		cuts.Add(1)
		return true
	})
	store := open(t, Options{URL: pgtest.URLVia(t, h.url, proxy.Address())})
	cuts.Store(0)

	u := update(t, "task", `{"state":"open"}`)
	first := store.ApplyDesired(t.Context(), p, u, names[:1])
	for first[0].Err == nil { // the one statement whose answer comes
		first = store.ApplyDesired(t.Context(), p, update(t, "other", `{"state":"open"}`), names[:1])
	}
	if _, ok := errors.AsType[*fleet.DeviceError](first[0].Err); ok || errors.Is(first[0].Err, fleet.ErrDeviceGone) {
		t.Errorf("error %v, want a passing one", first[0].Err)
	}
	h.exec(t, `UPDATE batchtask_device SET version = 1, applied_tasks = '{}'`+this, p.Namespace, p.ProductID, names[0])

	var done atomic.Int64
	<-h.inChunks(t, store, p, u, names, &done, nil)
	h.wantApplied(t, p, "task", len(names))

	// Results are recorded again when nobody knows whether they were.
	h.take(t, "uid", epoch, "", 0)
	recording.Store(true)
	for from := 0; from < 1000; from += 100 {
		r := fleet.ResultRange{Upto: names[from+99], Succeeded: names[from : from+99], Failed: []fleet.Failure{{Name: names[from+99], Reason: "X"}}, At: time.UnixMilli(1), Epoch: epoch}
		if from > 0 {
			r.After = names[from-1]
		}
		for range 20 {
			if store.Results().Record(t.Context(), "uid", p, r) == nil {
				break
			}
		}
	}
	if got, failed := len(h.list(t, "uid", false)), len(h.list(t, "uid", true)); got != 1000 || failed != 10 {
		t.Errorf("%d results with %d failures, want 1000 with 10", got, failed)
	}
	if cuts.Load() < 20 {
		t.Errorf("%d answers were lost: the test shows nothing", cuts.Load())
	}
}

// TestKilledServer : the server dies in the middle of updates, and comes back.
func TestKilledServer(t *testing.T) {
	server := pgtest.Start(t)
	h := newHarness(t, server)
	p := h.Product(t)
	names := h.seed(t, p, 4000)
	// It does not get far ahead of the kills, and goes on when the server is dead.
	var done, limit atomic.Int64
	limit.Store(800)
	ended := h.inChunks(t, h.store, p, update(t, "task", `{"state":"open"}`), names, &done, &limit)
	for _, at := range []int64{300, 1200, 2100} {
		waitFor(t, &done, at)
		server.Kill()
		limit.Add(900)
		if at == 1200 {
			if err := h.store.Sync(t.Context(), p.Namespace); err == nil {
				t.Error("Sync found a server that was killed")
			}
			if _, _, err := h.store.Scan(t.Context(), fleet.Query{Product: p}, 10); err == nil || refused(err) {
				t.Errorf("Scan: error %v, want a passing one", err)
			}
		}
		server.Restart()
	}
	limit.Store(math.MaxInt64)
	<-ended
	h.pool.Reset() // its connections are dead too
	h.wantApplied(t, p, "task", len(names))
}

// TestTerminatedSessions : somebody ends the sessions of the store, again and again.
func TestTerminatedSessions(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	names := h.seed(t, p, 3000)
	random := rand.New(rand.NewPCG(7, 8))
	sessions := 0
	// A batch leaves a session behind. When it was ended, the next batch may still be
	// opening its own: of two batches one at least has a session to end.
	for batch := range slices.Chunk(names, 100) {
		var done atomic.Int64
		ended := h.inChunks(t, h.store, p, update(t, "task", `{"state":"open"}`), batch, &done, nil)
		time.Sleep(time.Duration(random.Int64N(int64(10 * time.Millisecond))))
		var n int
		err := h.pool.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1`, DefaultApplicationName).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		sessions += n
		<-ended
	}
	if sessions < 10 {
		t.Errorf("%d sessions were ended: the test shows nothing", sessions)
	}
	h.wantApplied(t, p, "task", len(names))
}

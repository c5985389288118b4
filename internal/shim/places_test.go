package shim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"batchtask.dev/operator/internal/qcloud"
)

func testPlaces(all int) *places { return newPlaces(NewMetrics(prometheus.NewRegistry()), all) }

// However many calls an account makes that do not end, and however many such accounts there
// are, the next account gets a place at once.
func TestPlacesAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPlaces(256)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for greedy := range 20 {
			account := fmt.Sprint("greedy-", greedy)
			for range 100 {
				go func() {
					if _, err := p.take(ctx, account, ""); err == nil {
						<-ctx.Done()
						p.leave(account, "")
					}
				}()
			}
			synctest.Wait()
			p.mu.Lock()
			if used := p.accounts[account].used; used > 32 || used < 1 {
				t.Errorf("%s has %d places of 256, want at most an eighth", account, used)
			}
			p.mu.Unlock()
			before := time.Now()
			leave, err := p.take(ctx, "victim", "")
			if err != nil || time.Since(before) != 0 {
				t.Fatalf("beside %d greedy accounts another waits %v: %v", greedy+1, time.Since(before), err)
			}
			leave()
		}
		cancel()
		synctest.Wait()
		if p.used != 0 || p.waiting != 0 || len(p.accounts) != 0 || len(p.turns) != 0 {
			t.Errorf("in the end %d places are used and %d calls wait, of %d accounts", p.used, p.waiting, len(p.accounts))
		}
		if got := testutil.ToFloat64(p.metrics.inFlight); got != 0 {
			t.Errorf("the gauge says %v", got)
		}
	})
}

// A product whose database hangs keeps no other product of its account from being served, and
// what waits for it is refused with a reason.
func TestPlacesOfOneProduct(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPlaces(256)
		for range 8 {
			if _, err := p.take(t.Context(), "a", "hangs"); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		late := make(chan error)
		go func() {
			_, err := p.take(ctx, "a", "hangs")
			late <- err
		}()
		synctest.Wait()
		for _, product := range []string{"other", ""} {
			leave, err := p.take(ctx, "a", product)
			if err != nil {
				t.Fatal(err)
			}
			leave()
		}
		if err := <-late; qcloud.AsError(err).Kind != qcloud.KindRateLimited || !strings.Contains(err.Error(), "about this product") {
			t.Errorf("a ninth call about it ends with %v", err)
		}
		p.leave("a", "hangs")
		if _, err := p.take(t.Context(), "a", "hangs"); err != nil {
			t.Errorf("when one has ended: %v", err)
		}
	})
}

// Those who wait are served account by account, and those of one account in their order.
func TestPlacesInTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPlaces(1)
		if _, err := p.take(t.Context(), "first", ""); err != nil {
			t.Fatal(err)
		}
		served := make(chan string, 10)
		for _, call := range []string{"a1", "a2", "a3", "b1", "c1", "c2"} {
			go func() {
				if _, err := p.take(t.Context(), call[:1], ""); err == nil {
					served <- call
					p.leave(call[:1], "")
				}
			}()
			synctest.Wait()
		}
		p.leave("first", "")
		synctest.Wait()
		close(served)
		var order []string
		for call := range served {
			order = append(order, call)
		}
		if got := strings.Join(order, " "); got != "a1 b1 c1 a2 c2 a3" {
			t.Errorf("served in the order %s", got)
		}
	})
}

// How many calls may wait is bounded, for each account by its share of what is left.
func TestPlacesBoundWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPlaces(8)
		ctx, cancel := context.WithCancel(t.Context())
		refused := make(chan error, 400)
		for range 400 {
			go func() {
				if _, err := p.take(ctx, "greedy", ""); err != nil && ctx.Err() == nil {
					refused <- err
				}
			}()
		}
		synctest.Wait()
		if len(refused) < 250 || len(refused) > 300 {
			t.Fatalf("%d of 400 calls are refused; an eighth of %d may wait", len(refused), minWaiting)
		}
		if err := <-refused; qcloud.AsError(err).Kind != qcloud.KindRateLimited {
			t.Errorf("refused with %v", err)
		}
		if leave, err := p.take(ctx, "victim", ""); err != nil {
			t.Errorf("another account: %v", err)
		} else {
			leave()
		}
		cancel()
		synctest.Wait()
	})
}

// Of all places taken by others the caller is told nothing but that the server is at fault.
func TestPlacesAllTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPlaces(1)
		if _, err := p.take(t.Context(), "other", ""); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := p.take(ctx, "a", "")
		if qcloud.AsError(err).Kind != qcloud.KindInternal || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it ends with %v", err)
		}
	})
}

package router

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"

	"batchtask.dev/operator/internal/fleet"
)

// tryEnter reports whether there is a place at once.
func tryEnter(g *gate, namespace string) bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return g.enter(ctx, namespace) == nil
}

func fill(g *gate, namespace string) (n int) {
	for tryEnter(g, namespace) {
		n++
	}
	return n
}

// A namespace gets no more places than are free besides.
func TestGateKeepsRoom(t *testing.T) {
	g := newGate(64, true)
	if got := fill(g, "a"); got != 32 {
		t.Errorf("the first gets %d of 64", got)
	}
	if got := fill(g, "b"); got != 16 {
		t.Errorf("the second gets %d of 64", got)
	}
	for i := range 5 {
		if got := fill(g, string(rune('c'+i))); got < 1 && i < 4 {
			t.Errorf("namespace %d gets none", i+3)
		}
	}
	for range 32 {
		g.leave("a")
	}
	if got := fill(g, "z"); got < 10 {
		t.Errorf("a newcomer gets %d when the first has left", got)
	}
	if _, is := g.shares["a"]; is {
		t.Error("who has left is remembered")
	}
}

// Who has the fewest inside is next, whoever came first, and who has gone takes no place.
func TestGateIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, false)
		if fill(g, "greedy") != 2 {
			t.Fatal("a gate without reserve is not filled by one")
		}
		entered := make(chan string, 10)
		wait := func(ctx context.Context, namespace string) {
			go func() {
				if g.enter(ctx, namespace) == nil {
					entered <- namespace
				}
			}()
			synctest.Wait()
		}
		gone, leave := context.WithCancel(t.Context())
		wait(gone, "greedy")
		wait(t.Context(), "greedy")
		wait(t.Context(), "modest")
		leave()
		synctest.Wait()
		g.leave("greedy")
		if got := <-entered; got != "modest" {
			t.Errorf("%s is next", got)
		}
		g.leave("greedy")
		if got := <-entered; got != "greedy" {
			t.Errorf("%s is next", got)
		}
		g.leave("greedy")
		g.leave("modest")
		if g.used != 0 || g.waiting != 0 || len(g.shares) != 0 {
			t.Errorf("%d places are taken, %d wait, %d are remembered", g.used, g.waiting, len(g.shares))
		}
	})
}

// A call that waits for long is ended if nobody answers, and not if somebody does.
func TestSuspicion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := errors.New("silent")
		var away atomic.Bool
		b := &breaker{ctx: t.Context(), clock: clock.RealClock{}, probe: func(context.Context) error {
			if away.Load() {
				return silent
			}
			return nil
		}}
		ctx, slow, err := b.begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(12 * time.Second)
		if ctx.Err() != nil {
			t.Fatal("a call was ended though the server answers")
		}
		away.Store(true)
		young, quick, err := b.begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3500 * time.Millisecond) // it is asked every five seconds
		synctest.Wait()
		if _, ok := errors.AsType[*fleet.UnavailableError](context.Cause(ctx)); !ok {
			t.Errorf("the call goes on: %v", context.Cause(ctx))
		}
		if young.Err() != nil {
			t.Error("a call that has begun just now was ended")
		}
		if _, _, err := b.begin(t.Context()); !errors.Is(err, silent) {
			t.Errorf("a call is made to a silent server: %v", err)
		}
		b.end(slow, nil, false)
		if !b.end(quick, nil, true) {
			t.Error("an answer is no news")
		}
		_, again, err := b.begin(t.Context())
		if err != nil {
			t.Fatalf("after an answer: %v", err)
		}
		b.end(again, nil, true)
	})
}

package cpushare

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"
)

// work asks for as many steps as there is time, each of that length, and counts them.
func work(ctx context.Context, p *Pool, namespace string, step time.Duration, steps *atomic.Int64) {
	_ = p.Run(ctx, namespace, func() bool {
		<-time.After(step) // of the bubble: it stands for computing
		steps.Add(1)
		return true
	})
}

// What a namespace gets does not depend on how much it asks for, nor on how long its
// steps take.
func TestFairAmongNamespaces(t *testing.T) {
	for _, places := range []int{1, 2} {
		t.Run(fmt.Sprint(places, " places"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := New(places, clock.RealClock{})
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				var many [50]atomic.Int64
				for i := range many {
					go work(ctx, p, "many", Slice, &many[i])
				}
				var long, victim atomic.Int64
				for range places { // as many as could use all places
					go work(ctx, p, "long", 25*Slice, &long)
					go work(ctx, p, "victim", Slice, &victim)
				}
				<-time.After(11 * time.Second) // the last steps have ended too
				total := int64(0)
				for i := range many {
					total += many[i].Load()
				}
				// Of 10 s on each place, each of three gets a third.
				third := int64(places) * 10_000 / 3
				for name, got := range map[string]int64{"many": total, "long": 25 * long.Load(), "victim": victim.Load()} {
					if got < third*9/10 || got > third*11/10 {
						t.Errorf("%s computed for %d ms, want about %d", name, got, third)
					}
				}
			})
		})
	}
}

// Whoever has not computed for a while does not get what it has not used: else it could
// save time up and then hold up the others with it. Nor does it wait for long.
func TestNothingIsSavedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1, clock.RealClock{})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var steady, late atomic.Int64
		go work(ctx, p, "steady", Slice, &steady)
		<-time.After(time.Second)
		before, began := steady.Load(), time.Now()
		if err := p.Run(ctx, "late", func() bool { return false }); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 3*Slice {
			t.Errorf("who comes late waits for %v", took)
		}
		go work(ctx, p, "late", Slice, &late)
		<-time.After(2 * time.Second)
		if got := steady.Load() - before; got < 450 || got > 550 {
			t.Errorf("in the second second the steady one has %d steps and the late one %d, want as many of each", got, late.Load())
		}
	})
}

func TestGivesUpWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1, clock.RealClock{})
		hold := make(chan struct{})
		go func() { _ = p.Run(t.Context(), "holder", func() bool { <-hold; return false }) }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() { gone <- p.Run(ctx, "gone", func() bool { t.Error("a step of who has gone"); return false }) }()
		synctest.Wait()
		served := make(chan error)
		go func() { served <- p.Run(t.Context(), "next", func() bool { return false }) }()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("it says %v", err)
		}
		close(hold)
		if err := <-served; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if p.free != 1 || len(p.namespaces) != 0 || len(p.waiting) != 0 {
			t.Errorf("%d places are free, %d namespaces known, %d wait; want 1, 0, 0", p.free, len(p.namespaces), len(p.waiting))
		}
	})
}

// A step that panics gives its place back.
func TestPanic(t *testing.T) {
	p := New(1, clock.RealClock{})
	func() {
		defer func() { _ = recover() }()
		_ = p.Run(t.Context(), "a", func() bool { panic("a step") })
	}()
	if err := p.Run(t.Context(), "b", func() bool { return false }); err != nil || p.free != 1 {
		t.Errorf("after a panic %d places are free, error %v", p.free, err)
	}
}

package controllers

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"
)

// A lane that hangs holds up no other, and one that fails is tried ever more rarely.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lanes[string]{clock: clock.RealClock{}, most: time.Minute}
		ctx, stop := context.WithCancel(t.Context())
		var mu sync.Mutex
		runs := map[string][]time.Duration{}
		began := time.Now()
		work := func(name string, do func(context.Context) error) {
			l.run(ctx, name, "it fails", func(ctx context.Context) error {
				mu.Lock()
				runs[name] = append(runs[name], time.Since(began).Round(time.Second))
				mu.Unlock()
				return do(ctx)
			})
		}
		for range 200 {
			work("hangs", func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			})
			work("fails", func(context.Context) error { return errors.New("away") })
			work("panics", func(context.Context) error { panic("of one lane") })
			work("works", func(context.Context) error { return nil })
			time.Sleep(time.Second)
			l.sweep()
		}
		if got := len(runs["hangs"]); got != 1 {
			t.Errorf("what hangs was begun %d times", got)
		}
		if got := len(runs["works"]); got != 200 {
			t.Errorf("what works was done %d of 200 times", got)
		}
		s := time.Second
		want := []time.Duration{0, 1 * s, 3 * s, 7 * s, 15 * s, 31 * s, 63 * s, 123 * s, 183 * s}
		for _, name := range []string{"fails", "panics"} {
			if !slices.Equal(runs[name], want) {
				t.Errorf("what %s was tried at %v, want %v", name, runs[name], want)
			}
		}
		stop()
		l.wait()
		if time.Sleep(11 * time.Minute); len(l.all) != 2 {
			t.Errorf("%d lanes are remembered, want the two that failed", len(l.all))
		}
		if l.sweep(); len(l.all) != 0 {
			t.Errorf("%d lanes are remembered that nobody comes for", len(l.all))
		}
	})
}

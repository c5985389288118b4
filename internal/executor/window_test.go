package executor

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWindowALoneTaskHasItAll(t *testing.T) {
	w := NewWindow(1000)
	got, err := w.join().acquire(t.Context(), 5000)
	if err != nil || got != 1000 {
		t.Errorf("acquire = %d, %v; want 1000", got, err)
	}
}

// A newcomer gets the first places that come free, though another task has wanted
// more for longer.
func TestWindowTheNewcomerComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWindow(100)
		large, small := w.join(), w.join()
		if n, _ := large.acquire(t.Context(), 1000); n != 100 {
			t.Fatalf("the lone task got %d of 100", n)
		}
		largeGot, smallGot := make(chan int, 1), make(chan int, 1)
		go func() { n, _ := large.acquire(t.Context(), 900); largeGot <- n }()
		synctest.Wait()
		go func() { n, _ := small.acquire(t.Context(), 10); smallGot <- n }()
		synctest.Wait()
		large.release(1)
		synctest.Wait()
		select {
		case n := <-smallGot:
			if n != 1 {
				t.Errorf("the newcomer got %d places, 1 was free", n)
			}
		default:
			t.Error("the newcomer got nothing of the first free place")
		}
		large.release(99)
		if n := <-largeGot; n < 40 {
			t.Errorf("the large task got %d of the rest", n)
		}
	})
}

func TestWindowGivesBackWhatAnEndedContextWasGranted(t *testing.T) {
	w := NewWindow(10)
	a, b := w.join(), w.join()
	if n, _ := a.acquire(t.Context(), 10); n != 10 {
		t.Fatalf("acquire = %d, want 10", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := b.acquire(ctx, 5); err == nil || n != 0 {
		t.Fatalf("acquire with an ended context = %d, %v", n, err)
	}
	a.release(10)
	if n, _ := b.acquire(t.Context(), 10); n != 10 {
		t.Errorf("after all was given back, acquire = %d, want 10", n)
	}
}

func TestWindowIsNeverExceededAndNobodyStarves(t *testing.T) {
	const size, tasks, each = 64, 20, 500
	w := NewWindow(size)
	var inFlight, most atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range tasks {
		wg.Go(func() {
			s := w.join()
			var landing sync.WaitGroup
			for left := each; left > 0; {
				n, err := s.acquire(ctx, left)
				if err != nil {
					t.Errorf("a task starved with %d to go: %v", left, err)
					return
				}
				left -= n
				for now := inFlight.Add(int64(n)); ; {
					old := most.Load()
					if now <= old || most.CompareAndSwap(old, now) {
						break
					}
				}
				for range n {
					landing.Go(func() { inFlight.Add(-1); s.release(1) })
				}
			}
			landing.Wait()
		})
	}
	wg.Wait()
	if most.Load() > size {
		t.Errorf("%d places were taken of a window of %d", most.Load(), size)
	}
	if w.free != size {
		t.Errorf("%d places are free in the end, want %d", w.free, size)
	}
}

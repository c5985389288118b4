package executor

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func newWindow(size int) *Window {
	return NewWindow(size, 10, prometheus.NewGauge(prometheus.GaugeOpts{}))
}

// full is a share that has all the places it can have.
func full(t *testing.T, w *Window) *share {
	t.Helper()
	s := w.join()
	s.release(0, w.size)
	if n, err := s.acquire(t.Context(), w.size); err != nil || n != w.size-w.reserve {
		t.Fatalf("acquire = %d, %v; want %d", n, err, w.size-w.reserve)
	}
	return s
}

func TestWindowALoneTaskHasItAll(t *testing.T) {
	w := newWindow(1000)
	s := w.join()
	all := 0
	for all <= 938-1000/16 { // the last ones are granted by the handful
		got, err := s.acquire(t.Context(), 5000)
		if all += got; err != nil || got == 0 {
			t.Fatalf("acquire = %d, %v, with %d in flight", got, err, all)
		}
		s.release(0, 200)
	}
	if all > 938 {
		t.Errorf("%d places of 1000, want all but the last sixteenth", all)
	}
}

// A newcomer gets one of the last places, though another task has wanted more for longer.
func TestWindowTheNewcomerComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(100)
		large, small := full(t, w), w.join()
		largeGot, smallGot := make(chan int, 1), make(chan int, 1)
		go func() { n, _ := large.acquire(t.Context(), 900); largeGot <- n }()
		synctest.Wait()
		go func() { n, _ := small.acquire(t.Context(), 10); smallGot <- n }()
		synctest.Wait()
		large.release(1, 1)
		synctest.Wait()
		select {
		case n := <-smallGot:
			if n != 1 {
				t.Errorf("the newcomer got %d places, 1 is next to none", n)
			}
		default:
			t.Error("the newcomer got nothing of the places that are kept")
		}
		large.release(93, 93)
		if n := <-largeGot; n < 40 {
			t.Errorf("the large task got %d of the rest", n)
		}
	})
}

func TestWindowGivesBackWhatAnEndedContextWasGranted(t *testing.T) {
	w := newWindow(10)
	a, b := full(t, w), w.join()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := b.acquire(ctx, 5); err == nil || n != 0 {
		t.Fatalf("acquire with an ended context = %d, %v", n, err)
	}
	a.release(10, 10)
	b.release(0, 10)
	if n, _ := b.acquire(t.Context(), 10); n != 10 {
		t.Errorf("after all was given back, acquire = %d, want 10", n)
	}
}

func TestWindowIsNeverExceededAndNobodyStarves(t *testing.T) {
	const size, tasks, each = 64, 20, 500
	w := newWindow(size)
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
					landing.Go(func() { inFlight.Add(-1); s.release(1, 1) })
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

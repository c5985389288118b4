package executor

import (
	"container/heap"
	"context"
	"sync"
)

// Window is the publish window: how many messages may be on their way to the
// broker at once, over all tasks. It is shared max-min fairly: a task that wants
// more gets it as long as nobody with less is waiting, so a task over ten devices
// need not wait until one over a million is through, and a lone task has it all.
type Window struct {
	size int

	mu      sync.Mutex
	free    int
	waiting shareHeap // those that wait, fewest in flight first
}

// NewWindow returns a window for size messages.
func NewWindow(size int) *Window { return &Window{size: size, free: size} }

// share is one task's part in the window.
type share struct {
	window   *Window
	inFlight int
	want     int
	granted  chan int // has room for one grant
	index    int      // in the heap; -1 when not waiting
}

func (w *Window) join() *share {
	return &share{window: w, granted: make(chan int, 1), index: -1}
}

// acquire waits for at least one place and returns how many it got, at most n.
func (s *share) acquire(ctx context.Context, n int) (int, error) {
	w := s.window
	w.mu.Lock()
	s.want = n
	heap.Push(&w.waiting, s)
	w.dispatch()
	w.mu.Unlock()
	select {
	case got := <-s.granted:
		return got, nil
	case <-ctx.Done():
	}
	w.mu.Lock()
	if s.index >= 0 {
		heap.Remove(&w.waiting, s.index)
	}
	w.mu.Unlock()
	select {
	case got := <-s.granted: // granted while ctx ended
		s.release(got)
	default:
	}
	return 0, ctx.Err()
}

// release gives n places back.
func (s *share) release(n int) {
	w := s.window
	w.mu.Lock()
	defer w.mu.Unlock()
	s.inFlight -= n
	w.free += n
	if s.index >= 0 {
		heap.Fix(&w.waiting, s.index)
	}
	w.dispatch()
}

// dispatch grants free places to those that wait. With others waiting too, a
// share is granted no more than an even part at a time. A share that has plenty in
// flight is woken for a handful of places, not for each: a wake-up costs more
// than an acknowledgement.
func (w *Window) dispatch() {
	for w.free > 0 && len(w.waiting) > 0 {
		first := w.waiting[0]
		handful := min(first.want, max(1, w.size/16), max(1, first.inFlight))
		if w.free < handful {
			return
		}
		n := min(first.want, w.free)
		if len(w.waiting) > 1 {
			n = min(n, max(1, w.size/len(w.waiting)-first.inFlight))
		}
		heap.Pop(&w.waiting)
		first.inFlight += n
		w.free -= n
		first.granted <- n
	}
}

// shareHeap is a container/heap of the shares that wait.
type shareHeap []*share

func (h shareHeap) Len() int           { return len(h) }
func (h shareHeap) Less(i, j int) bool { return h[i].inFlight < h[j].inFlight }
func (h shareHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *shareHeap) Push(x any) {
	s := x.(*share) //nolint:forcetypeassert // only shares are pushed
	s.index = len(*h)
	*h = append(*h, s)
}

func (h *shareHeap) Pop() any {
	last := len(*h) - 1
	s := (*h)[last]
	*h = (*h)[:last]
	s.index = -1
	return s
}

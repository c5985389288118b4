package executor

import (
	"container/heap"
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Window is the publish window: how many messages may be on their way to the
// broker at once, over all tasks. It is shared max-min fairly: a task that wants
// more gets it as long as nobody with less is waiting, so a task over ten devices
// need not wait until one over a million is through, and a lone task has nearly all.
//
// Nobody can keep it from the others, whatever the broker does with his messages:
//
//   - The last places, a sixteenth, are for tasks that have next to none, all of whose
//     messages are acknowledged in time.
//   - A task begins with an eighth. Each acknowledgement adds a place, so a task that
//     gets some soon has all it can use, and one that gets none never has more.
//   - A message that is not acknowledged in time gives its place back (forfeit). The task
//     begins with an eighth again, and such messages count as if they still had a place
//     where it is decided whose turn it is. With as many of them as the limit says, it gets
//     no more places until some are acknowledged.
type Window struct {
	size    int
	reserve int // the last places
	few     int // how many places are next to none
	start   int // how many a task may have before its first acknowledgement
	limit   int // of forfeited messages of a task

	forfeited prometheus.Gauge

	mu    sync.Mutex
	free  int
	first shareHeap // those that wait and may have the last places too
	rest  shareHeap // those that wait and may not
}

// NewWindow returns a window for size messages, in which a task may have limit messages
// that are not acknowledged in time before it gets no more places. The gauge shows how many
// there are of all tasks.
func NewWindow(size, limit int, forfeited prometheus.Gauge) *Window {
	return &Window{
		size: size, free: size, limit: limit, forfeited: forfeited,
		reserve: size / 16, few: max(1, size/256), start: max(1, size/8),
	}
}

// share is one task's part in the window.
type share struct {
	window    *Window
	inFlight  int
	forfeited int // messages without a result that have given their places back
	allowed   int // how many it may have in flight
	left      bool

	waiting bool // in acquire, also where it is in no heap
	want    int
	granted chan int   // has room for one grant
	heap    *shareHeap // that it is in; nil for none
	index   int
}

func (w *Window) join() *share {
	return &share{window: w, allowed: w.start, granted: make(chan int, 1)}
}

// acquire waits for at least one place and returns how many it got, at most n.
func (s *share) acquire(ctx context.Context, n int) (int, error) {
	s.enter(n)
	select {
	case got := <-s.granted:
		return got, nil
	case <-ctx.Done():
	}
	s.exit()
	select {
	case got := <-s.granted: // granted while ctx ended
		s.release(got, 0)
	default:
	}
	return 0, ctx.Err()
}

func (s *share) enter(n int) {
	s.window.mu.Lock()
	defer s.window.mu.Unlock()
	s.want, s.waiting = n, true
	s.window.place(s)
	s.window.dispatch()
}

func (s *share) exit() {
	s.window.mu.Lock()
	defer s.window.mu.Unlock()
	s.waiting = false
	s.window.place(s)
}

// release gives n places back; for answered of them the broker has said what became of the
// message.
func (s *share) release(n, answered int) {
	s.change(func() {
		s.inFlight -= n
		s.window.free += n
		s.allowed = min(s.allowed+answered, s.window.size)
	})
}

// forfeit gives the places of n messages back that have no result yet.
func (s *share) forfeit(n int) {
	s.change(func() {
		s.inFlight -= n
		s.window.free += n
		s.forfeited += n
		s.window.forfeited.Add(float64(n))
		s.allowed = s.window.start
	})
}

// settle notes that a message has its result that had given its place back.
func (s *share) settle() {
	s.change(func() {
		s.forfeited--
		s.window.forfeited.Dec()
	})
}

// leave gives back what a task has that has ended. Results that come after it change nothing.
func (s *share) leave() {
	s.change(func() {
		s.window.free += s.inFlight
		s.window.forfeited.Sub(float64(s.forfeited))
		s.inFlight, s.left = 0, true
	})
}

func (s *share) change(do func()) {
	w := s.window
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.left {
		return
	}
	do()
	w.place(s)
	w.dispatch()
}

// stopped reports whether the share gets no places because of forfeited messages.
func (s *share) stopped() bool {
	s.window.mu.Lock()
	defer s.window.mu.Unlock()
	return s.forfeited >= s.window.limit
}

// place puts a share where it belongs: into one of the heaps while it waits and may have
// more, else into none.
func (w *Window) place(s *share) {
	var heapOf *shareHeap
	switch {
	case !s.waiting || s.inFlight >= s.allowed || s.forfeited >= w.limit:
	case s.inFlight < w.few && s.forfeited == 0:
		heapOf = &w.first
	default:
		heapOf = &w.rest
	}
	if s.heap == heapOf {
		if heapOf != nil {
			heap.Fix(heapOf, s.index)
		}
		return
	}
	if s.heap != nil {
		heap.Remove(s.heap, s.index)
	}
	if s.heap = heapOf; heapOf != nil {
		heap.Push(heapOf, s)
	}
}

// dispatch grants free places to those that wait. With others waiting too, a
// share is granted no more than an even part at a time. A share that has plenty in
// flight is woken for a handful of places, not for each: a wake-up costs more
// than an acknowledgement.
func (w *Window) dispatch() {
	for w.free > 0 && len(w.first) > 0 {
		s := w.first[0]
		w.grant(s, max(min(w.part(s), w.free-w.reserve), min(s.want, w.free, w.few-s.inFlight)))
	}
	for free := w.free - w.reserve; free > 0 && len(w.rest) > 0; free = w.free - w.reserve {
		s := w.rest[0]
		part := w.part(s)
		if free < min(part, max(1, w.size/16), max(1, s.inFlight)) {
			return
		}
		w.grant(s, min(part, free))
	}
}

// part is how many places a share may be granted at a time.
func (w *Window) part(s *share) int {
	n := min(s.want, s.allowed-s.inFlight)
	if waiting := len(w.first) + len(w.rest); waiting > 1 {
		n = min(n, max(1, w.size/waiting-s.inFlight))
	}
	return n
}

func (w *Window) grant(s *share, n int) {
	s.inFlight += n
	w.free -= n
	s.waiting = false
	w.place(s)
	s.granted <- n
}

// shareHeap is a container/heap of shares, those with the fewest messages first.
type shareHeap []*share

func (h shareHeap) Len() int           { return len(h) }
func (h shareHeap) Less(i, j int) bool { return h[i].open() < h[j].open() }
func (h shareHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// open is how many messages have no result.
func (s *share) open() int { return s.inFlight + s.forfeited }

func (h *shareHeap) Push(x any) {
	s := x.(*share) //nolint:forcetypeassert // only shares are pushed
	s.index = len(*h)
	*h = append(*h, s)
}

func (h *shareHeap) Pop() any {
	last := len(*h) - 1
	s := (*h)[last]
	*h = (*h)[:last]
	return s
}

package service

import (
	"sync"

	"batchtask.dev/operator/internal/shadow"
)

// queue holds jobs until they are done: those of one device in the order in which
// they came, and those of different devices side by side. Number and size of what it
// holds are bounded, what is being worked on included.
type queue struct {
	// slots has one element for each job held, and more for a job that is larger than
	// any message should be.
	slots chan struct{}
	// ready has the lines whose first job waits for a worker. There are no more lines
	// than jobs, so sending to it never blocks.
	ready   chan *line
	closing chan struct{} // closed when nothing more is taken
	empty   chan struct{} // closed when, after that, nothing is held

	mu     sync.Mutex
	lines  map[device]*line
	jobs   int
	closed bool
}

// line holds the jobs of one device.
type line struct {
	device device
	jobs   []job
}

func newQueue(length int) *queue {
	return &queue{
		slots: make(chan struct{}, length), ready: make(chan *line, length),
		closing: make(chan struct{}), empty: make(chan struct{}), lines: map[device]*line{},
	}
}

// put adds a job, and waits while the queue is full. False says that it was not
// added: the queue was closed, or giveUp was. It must not be called twice at once.
func (q *queue) put(d device, j job, giveUp <-chan struct{}) bool {
	for taken := range q.weight(j) {
		select {
		case q.slots <- struct{}{}:
			continue
		default:
		}
		select {
		case q.slots <- struct{}{}:
		case <-q.closing:
			q.free(taken)
			return false
		case <-giveUp:
			q.free(taken)
			return false
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		q.free(q.weight(j))
		return false
	}
	q.jobs++
	if l := q.lines[d]; l != nil {
		l.jobs = append(l.jobs, j)
		return true
	}
	l := &line{device: d, jobs: []job{j}}
	q.lines[d] = l
	q.ready <- l
	return true
}

// weight is how many slots a job takes.
func (q *queue) weight(j job) int { return min(1+j.bytes/shadow.MaxMessageBytes, cap(q.slots)) }

func (q *queue) free(slots int) {
	for range slots {
		<-q.slots
	}
}

// first returns the first job of a line that was taken from ready.
func (q *queue) first(l *line) job {
	q.mu.Lock()
	defer q.mu.Unlock()
	return l.jobs[0]
}

// done removes the first job of a line that was taken from ready. The next one of
// it goes to the end of ready: a device with much to say does not hold up others.
func (q *queue) done(l *line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free(q.weight(l.jobs[0]))
	l.jobs[0] = job{}
	if l.jobs = l.jobs[1:]; len(l.jobs) == 0 {
		delete(q.lines, l.device)
	} else {
		q.ready <- l
	}
	q.jobs--
	if q.closed && q.jobs == 0 {
		close(q.empty)
	}
}

// close makes the queue take nothing more.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.closed = true
	close(q.closing)
	if q.jobs == 0 {
		close(q.empty)
	}
}

// held is how many jobs the queue holds.
func (q *queue) held() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.jobs
}

// Package lease says what a process may do on the strength of the Lease by which it is
// elected. The election itself does not: it goes on trusting a Lease while it tries to
// renew it, and a process that stood still for a while learns late that another has been
// elected.
//
//	renewal sent        in doubt                 over
//	─────┼───────────────────┼────────────────────┼──────▶ time
//	     │ sure: feed        │ feed nothing, let  │ send nothing, also
//	     │                   │ what was sent land │ not again
//	     0          RenewDeadline/2        LeaseDuration
//
// Another process waits for the Lease's duration after it has *seen* a renewal, which is
// after the renewal was sent. So until that time has passed since then, nobody else is
// elected, however late the answer came and whatever the clocks of others say.
package lease

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/clock"
)

// Identity returns a name for this process that no other has, also not on this host.
func Identity() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find the name of this host: %w", err)
	}
	return host + "_" + string(uuid.NewUUID()), nil
}

// Lease is a Lease as its holder knows it. It is safe for concurrent use.
type Lease struct {
	clock    clock.PassiveClock
	identity string
	// doubtAfter is how long after a renewal was sent its holder is in doubt.
	doubtAfter time.Duration
	sole       bool // there is no election

	now atomic.Pointer[state]

	mu      sync.Mutex    // held by who changes the state
	changed chan struct{} // closed when the state changes
}

// state is what is known of the Lease at one time. It is replaced, never changed.
type state struct {
	// term counts how often the Lease was won, and how often it came to its end or was
	// seen to be another's. What was begun in a term may go on in that term alone.
	term  uint64
	epoch string
	held  bool
	// sent is when the last successful renewal was sent, and good for how long the Lease
	// is good from then.
	sent time.Time
	good time.Duration

	acquired    int64 // Unix microseconds, as the Lease keeps them
	transitions int
	leaving     bool
}

// Elected returns a Lease that is held as far as the lock shows it that [Lease.Watch] returns.
// A holder that has not renewed it for half of renewDeadline is in doubt.
func Elected(identity string, renewDeadline time.Duration, clk clock.PassiveClock) *Lease {
	l := &Lease{clock: clk, identity: identity, doubtAfter: renewDeadline / 2, changed: make(chan struct{})}
	l.now.Store(&state{})
	return l
}

// Sole returns the Lease of a process that is declared to be the only one: it is held from
// the beginning, and for ever.
func Sole(identity string) *Lease {
	l := &Lease{clock: clock.RealClock{}, identity: identity, sole: true, changed: make(chan struct{})}
	l.now.Store(&state{term: 1, held: true, epoch: identity})
	return l
}

// Hold returns the right that the Lease gives now, and whether it is sure: whoever takes
// something over must have it so.
func (l *Lease) Hold() (Hold, bool) {
	s := l.now.Load()
	h := Hold{lease: l, term: s.term, epoch: s.epoch}
	return h, h.Sure()
}

// StepDown gives up all rights, before the process ends: nothing new may begin.
func (l *Lease) StepDown() {
	l.change(func(s *state) { s.leaving = true })
}

// Watch returns the lock, such that this Lease learns of each renewal.
func (l *Lease) Watch(lock resourcelock.Interface) resourcelock.Interface {
	return &watched{Interface: lock, lease: l}
}

// change replaces the state by what do makes of it. A Lease whose time is over has come to
// the end of a term, also where nobody looked: do finds that done.
func (l *Lease) change(do func(*state)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := *l.now.Load()
	if next.held && !l.within(&next, next.good) {
		next.end()
	}
	do(&next)
	l.now.Store(&next)
	close(l.changed)
	l.changed = make(chan struct{})
}

func (s *state) end() {
	s.held = false
	s.term++
}

// within reports whether less than that has passed since the last renewal was sent. A
// machine that was suspended may show it on one of its clocks alone, so the clock that has
// gone further counts.
func (l *Lease) within(s *state, limit time.Duration) bool {
	if l.sole {
		return true
	}
	now := l.clock.Now()
	return now.Sub(s.sent) < limit && now.Round(0).Sub(s.sent.Round(0)) < limit
}

// renewed notes a renewal that has succeeded.
func (l *Lease) renewed(record *resourcelock.LeaderElectionRecord, sent time.Time) {
	l.change(func(s *state) {
		acquired := record.AcquireTime.UnixMicro()
		if !s.held || s.acquired != acquired || s.transitions != record.LeaderTransitions {
			// Won, or won back. The time of winning stays with each renewal: where it is another,
			// somebody else may have held the Lease meanwhile, also where it was deleted and the
			// transitions are counted from 0 again.
			s.end()
			s.acquired, s.transitions = acquired, record.LeaderTransitions
			s.epoch = fmt.Sprintf("%s/%d", l.identity, record.LeaderTransitions)
		}
		// Others read the duration from the record, which has whole seconds.
		s.held, s.sent, s.good = true, sent, time.Duration(record.LeaseDurationSeconds)*time.Second
	})
}

// ended notes that the Lease is another's, or about to be given away.
func (l *Lease) ended() {
	if l.now.Load().held {
		l.change(func(s *state) {
			if s.held {
				s.end()
			}
		})
	}
}

// expire ends a term whose time is over, for good: a clock may be set back.
func (l *Lease) expire(term uint64) {
	l.change(func(s *state) {
		if s.held && s.term == term {
			s.end()
		}
	})
}

// watched is a lock that tells of what it sees and writes.
type watched struct {
	resourcelock.Interface
	lease *Lease
}

// Get implements resourcelock.Interface.
func (w *watched) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := w.Interface.Get(ctx)
	if err == nil && record.HolderIdentity != w.lease.identity {
		w.lease.ended()
	}
	return record, raw, err //nolint:wrapcheck // the election asks what kind it is
}

// Create implements resourcelock.Interface.
func (w *watched) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return w.write(record, func() error { return w.Interface.Create(ctx, record) })
}

// Update implements resourcelock.Interface.
func (w *watched) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return w.write(record, func() error { return w.Interface.Update(ctx, record) })
}

// write makes a write and notes it, if it succeeds. Of one that fails nobody knows whether it
// was carried out: a renewal then counts as none, and giving the Lease away as done.
func (w *watched) write(record resourcelock.LeaderElectionRecord, do func() error) error {
	sent := w.lease.clock.Now()
	if record.HolderIdentity != w.lease.identity {
		w.lease.ended()
	}
	err := do()
	if err == nil && record.HolderIdentity == w.lease.identity {
		w.lease.renewed(&record, sent)
	}
	return err
}

package lease

import (
	"context"
	"errors"
)

// ErrOver says that the term is over in which something was begun: another process may
// have been elected.
var ErrOver = errors.New("the Lease of the leader election is not held any more")

// Hold is the right of one term of a Lease. The zero value is the right of somebody whom no
// Lease binds; it never ends.
type Hold struct {
	lease *Lease
	term  uint64
	epoch string
}

// Epoch names the term's leader in what is stored: the identity of the process and how
// often the Lease had changed hands. No other leader has it.
func (h Hold) Epoch() string { return h.epoch }

// Sure reports whether the Lease is surely held and its last renewal not long ago, so that
// something may be begun.
func (h Hold) Sure() bool {
	if h.lease == nil {
		return true
	}
	s := h.lease.now.Load()
	return h.in(s) && !s.leaving && h.lease.within(s, min(h.lease.doubtAfter, s.good))
}

// Valid reports whether the term goes on: nobody else has been elected, though that may be
// near. Once false it stays so.
func (h Hold) Valid() bool {
	if h.lease == nil {
		return true
	}
	s := h.lease.now.Load()
	if h.in(s) && !h.lease.within(s, s.good) {
		h.lease.expire(h.term)
		return false
	}
	return h.in(s)
}

func (h Hold) in(s *state) bool { return s.held && s.term == h.term }

// Wait returns nil once the Lease is surely held, which takes a renewal where it is in
// doubt. It returns [ErrOver] when the term is over, and the error of ctx.
func (h Hold) Wait(ctx context.Context) error {
	for {
		if h.Sure() {
			return nil
		}
		h.lease.mu.Lock()
		changed := h.lease.changed
		h.lease.mu.Unlock()
		switch {
		case h.Sure(): // renewed just before
			return nil
		case !h.Valid():
			return ErrOver
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

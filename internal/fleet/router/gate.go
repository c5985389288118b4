package router

import (
	"context"
	"slices"
	"sync"
)

// gate lets so many in at once. Of those who wait, one is next whose namespace has the
// fewest inside. So no namespace waits for all the calls of another.
type gate struct {
	total int
	// reserve keeps room for who comes: a namespace may have no more inside than there are
	// free places. One alone gets half of all, two a third each; there is a free place as
	// long as there are fewer namespaces than places.
	reserve bool

	mu      sync.Mutex
	used    int
	shares  map[string]*share
	waiting int
}

// share is what a namespace has of a gate.
type share struct {
	inside  int
	waiting []chan struct{}
}

func newGate(total int, reserve bool) *gate {
	return &gate{total: max(1, total), reserve: reserve, shares: map[string]*share{}}
}

// enter waits for a place.
func (g *gate) enter(ctx context.Context, namespace string) error {
	g.mu.Lock()
	s := g.shares[namespace]
	if s == nil {
		s = &share{}
		g.shares[namespace] = s
	}
	if len(s.waiting) == 0 && g.may(s) {
		g.let(s)
		g.mu.Unlock()
		return nil
	}
	place := make(chan struct{})
	s.waiting = append(s.waiting, place)
	g.waiting++
	g.mu.Unlock()
	select {
	case <-place:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(s.waiting, place); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		g.waiting--
	} else { // it came at the last moment
		g.leaveLocked(namespace)
	}
	g.forget(namespace)
	return ctx.Err()
}

// leave gives a place back.
func (g *gate) leave(namespace string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leaveLocked(namespace)
	g.forget(namespace)
}

func (g *gate) leaveLocked(namespace string) {
	g.shares[namespace].inside--
	g.used--
	for g.waiting > 0 && g.used < g.total {
		var next *share
		for _, s := range g.shares {
			if len(s.waiting) > 0 && g.may(s) && (next == nil || s.inside < next.inside) {
				next = s
			}
		}
		if next == nil {
			return
		}
		close(next.waiting[0])
		next.waiting = next.waiting[1:]
		g.waiting--
		g.let(next)
	}
}

func (g *gate) may(s *share) bool {
	free := g.total - g.used
	return free > 0 && (!g.reserve || s.inside < free)
}

func (g *gate) let(s *share) {
	s.inside++
	g.used++
}

func (g *gate) forget(namespace string) {
	if s := g.shares[namespace]; s != nil && s.inside == 0 && len(s.waiting) == 0 {
		delete(g.shares, namespace)
	}
}

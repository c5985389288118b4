package kube

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"batchtask.dev/operator/internal/fleet"
)

// ApplyDesired implements [fleet.Store].
func (s *Store) ApplyDesired(ctx context.Context, p fleet.Product, u fleet.DesiredUpdate, names []string) []fleet.DesiredResult {
	results := make([]fleet.DesiredResult, len(names))
	if err := s.ready(); err != nil {
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	var running sync.WaitGroup
	var broken atomic.Pointer[fault]
	for i, name := range names {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			results[i].Err = fmt.Errorf("updating the shadow of device %s: %w", name, ctx.Err())
			continue
		}
		running.Go(func() {
			defer func() { <-s.slots }()
			defer func() {
				if said := recover(); said != nil {
					broken.Store(&fault{said, debug.Stack()})
				}
			}()
			results[i].Delta, results[i].Err = s.applyOne(ctx, p, u, name)
		})
	}
	running.Wait()
	if f := broken.Load(); f != nil {
		panic(f.String()) // on the caller's goroutine, where it is known whose devices these are
	}
	return results
}

// fault is a panic and where it was.
type fault struct {
	said  any
	stack []byte
}

func (f *fault) String() string { return fmt.Sprintf("%v\n%s", f.said, f.stack) }

func (s *Store) applyOne(ctx context.Context, p fleet.Product, u fleet.DesiredUpdate, name string) (delta []byte, err error) {
	err = s.change(ctx, p, name, func(was fleet.Shadow) (fleet.Shadow, error) {
		applied, err := u.Apply(was)
		delta = applied.Delta
		return applied.Shadow, err
	})
	if err != nil {
		return nil, err
	}
	return delta, nil
}

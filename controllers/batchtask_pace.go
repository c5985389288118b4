package controllers

import (
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// DefaultStatusWrites is how many writes of progress a second all running tasks share.
const DefaultStatusWrites = 100

// pace spreads the writes of progress of running tasks. Each namespace with running tasks has
// an even part of the rate, and each task an even part of that of its namespace: with m tasks
// in one of k namespaces a task writes once in m·k/rate seconds, at most. Of few tasks nobody
// notices: they tell of progress about once a second anyway.
//
// It is only for writes that can wait. That a task begins, ends, is held up or goes on again
// is written at once, and so is progress that the run waits for: how much that can be, the
// resend limit and the speed of the broker bound together.
type pace struct {
	rate float64 // writes a second

	mu    sync.Mutex
	tasks map[string]map[types.NamespacedName]time.Time // by namespace: when each may write again
}

// due returns how long a task has to wait before it may write that it has come further.
func (p *pace) due(name types.NamespacedName, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.tasks[name.Namespace][name].Sub(now))
}

// wrote notes that a running task's progress was written.
func (p *pace) wrote(name types.NamespacedName, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tasks == nil {
		p.tasks = map[string]map[types.NamespacedName]time.Time{}
	}
	if p.tasks[name.Namespace] == nil {
		p.tasks[name.Namespace] = map[types.NamespacedName]time.Time{}
	}
	p.tasks[name.Namespace][name] = now
	if p.rate <= 0 {
		return
	}
	each := float64(len(p.tasks)*len(p.tasks[name.Namespace])) / p.rate
	// Up to a quarter more: tasks that have begun together do not go on writing together.
	each *= 1 + rand.Float64()/4 //nolint:gosec // no secret
	p.tasks[name.Namespace][name] = now.Add(time.Duration(each * float64(time.Second)))
}

// drop forgets a task that does not run any more.
func (p *pace) drop(name types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tasks[name.Namespace], name)
	if len(p.tasks[name.Namespace]) == 0 {
		delete(p.tasks, name.Namespace)
	}
}

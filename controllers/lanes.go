package controllers

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"k8s.io/utils/clock"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
)

// lanes runs the same work for many tenants, each in a lane of its own: one that waits for
// a server which does not answer keeps nobody else waiting, and is tried ever more rarely.
// How many wait for a server at once is bounded by the stores; see router.Limits.
type lanes[K comparable] struct {
	clock clock.PassiveClock
	// most is the greatest pause after failures; the first is a second.
	most time.Duration

	mu      sync.Mutex
	all     map[K]*lane
	running sync.WaitGroup
}

type lane struct {
	busy   bool
	failed int // in a row
	next   time.Time
}

const laneFirst = time.Second

// run does something in a lane, unless it is busy or has failed a moment ago. The error is
// logged: the first, and then now and then.
func (l *lanes[K]) run(ctx context.Context, key K, failed string, do func(context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[K]*lane{}
	}
	of := l.all[key]
	if of == nil {
		of = &lane{}
		l.all[key] = of
	}
	if of.busy || l.clock.Now().Before(of.next) {
		return
	}
	of.busy = true
	l.running.Go(func() {
		err := caught(ctx, func() error { return do(ctx) })
		l.mu.Lock()
		defer l.mu.Unlock()
		of.busy = false
		if err == nil || ctx.Err() != nil {
			delete(l.all, key) // an idle lane needs no memory
			return
		}
		if of.failed++; of.failed == 1 || of.failed%20 == 0 {
			logf.FromContext(ctx).Error(err, failed)
		}
		of.next = l.clock.Now().Add(min(l.most, laneFirst<<min(of.failed-1, 20)))
	})
}

// sweep forgets failed lanes whose pause has long been over: nobody comes for them any more.
func (l *lanes[K]) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, of := range l.all {
		if !of.busy && l.clock.Since(of.next) > 10*l.most {
			delete(l.all, key)
		}
	}
}

// wait returns when nothing runs any more.
func (l *lanes[K]) wait() { l.running.Wait() }

// errPanic is what anybody may see of a panic.
var errPanic = errors.New("an internal error; the log of the operator has the details")

// caught calls do. A panic in it is an error: what the server of one tenant answers must not
// end the work for all.
func caught(ctx context.Context, do func() error) (err error) {
	defer func() {
		if said := recover(); said != nil {
			logf.FromContext(ctx).Error(fmt.Errorf("panic: %v", said), "A fault in the program", "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return do()
}

package router

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"batchtask.dev/operator/internal/fleet"
)

// server is a database that all share whose Secrets name it in the same way.
type server struct {
	identity string
	refs     int           // guarded by Databases.mu
	opened   chan struct{} // closed when the following are set
	database Database      // nil where it could not be opened
	err      error

	calls   *gate
	breaker breaker

	// results are those of all tasks, and told that they are among an answer that is being
	// put together; guarded by Databases.mu.
	results fleet.Results
	told    bool
}

// errSilent : a database could not be opened in time.
var errSilent = fmt.Errorf("the database has not answered in %v", openTimeout)

// acquire returns the server at a URL, which an entry of a namespace is to have, held once
// more. Of those who ask at the same time one opens it.
func (d *Databases) acquire(namespace string, e *entry, url string) (*server, error) {
	identity, err := d.kind.Identity(url)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	s := d.servers[identity]
	if err := d.room(namespace, e, s); err != nil {
		d.mu.Unlock()
		return nil, err
	}
	opens := s == nil
	if opens {
		s = &server{identity: identity, opened: make(chan struct{}), calls: newGate(d.limits.CallsEach, false)}
		s.breaker.ctx, s.breaker.clock = d.ctx, d.clock
		d.servers[identity] = s
	}
	s.refs++
	d.mu.Unlock()
	if opens {
		s.database, s.err = d.open(namespace, url)
		if s.err == nil {
			s.breaker.probe = s.probe
		} else {
			d.mu.Lock()
			delete(d.servers, identity) // who comes next tries again
			d.mu.Unlock()
		}
		close(s.opened)
	}
	<-s.opened
	if s.err != nil {
		return nil, s.err
	}
	return s, nil
}

// room returns an error where a namespace has as many databases open as it may, and s is
// none of them. One that an entry is to have comes in the place of the one that it has.
func (d *Databases) room(namespace string, of *entry, s *server) error {
	open := map[*server]bool{}
	for key, e := range d.entries {
		if key.Namespace == namespace && e != of && e.server != nil {
			open[e.server] = true
		}
	}
	if open[s] || len(open) < d.limits.PerNamespace {
		return nil
	}
	return &fleet.UnavailableError{Reason: fmt.Sprintf(
		"namespace %s uses %d databases already, and may use %d (--databases-per-namespace); Products that name the same database with the same user and password share one",
		namespace, len(open), d.limits.PerNamespace), Err: errors.New("too many databases of a namespace")}
}

// open opens a database, in a place of the namespace for calls. A panic is an error of
// this database: what its server says must not end the process.
func (d *Databases) open(namespace, url string) (_ Database, err error) {
	defer func() {
		if said := recover(); said != nil {
			d.log.Error(fmt.Errorf("%v", said), "Opening a database has panicked", "namespace", namespace, "stack", string(debug.Stack()))
			err = errors.New("an internal error; the log of the program has the details")
		}
	}()
	if err := d.calls.enter(d.ctx, namespace); err != nil {
		return nil, err
	}
	defer d.calls.leave(namespace)
	ctx, cancel := context.WithTimeoutCause(d.ctx, openTimeout, errSilent)
	defer cancel()
	database, err := d.kind.Open(ctx, url)
	if err != nil && errors.Is(context.Cause(ctx), errSilent) {
		err = fmt.Errorf("%w: %w", errSilent, err)
	}
	return database, err
}

// release lets go of a server, which the last one closes. The caller holds mu.
func (d *Databases) release(s *server) {
	d.releaseAnd(s, func(database Database) { go database.Close() })
}

func (d *Databases) releaseAnd(s *server, end func(Database)) {
	if s.refs--; s.refs > 0 {
		return
	}
	if d.servers[s.identity] == s {
		delete(d.servers, s.identity)
	}
	end(s.database)
}

// probe is that of the breaker. A server that answers is there, whatever it says.
func (s *server) probe(ctx context.Context) error {
	err := s.database.Probe(ctx)
	if fault, is := s.database.Fault(err); is && fault.Away {
		return err
	}
	return nil
}

// guard is before each call of a namespace to a server.
type guard struct {
	databases *Databases
	server    *server
	namespace string
}

var _ fleet.Guard = (*guard)(nil)

// Enter implements [fleet.Guard].
func (g *guard) Enter(ctx context.Context) (context.Context, func(error) error, error) {
	inside, c, err := g.server.breaker.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	// The places of the database first: who waits for those takes none of the others'.
	for i, gate := range []*gate{g.server.calls, g.databases.calls} {
		if err := gate.enter(inside, g.namespace); err != nil {
			if i > 0 {
				g.server.calls.leave(g.namespace)
			}
			if why, ok := errors.AsType[*fleet.UnavailableError](context.Cause(inside)); ok {
				err = why
			} else {
				err = fmt.Errorf("waiting for a place among the calls to databases, which namespaces share (--database-connections, --database-connections-total): %w", err)
			}
			g.server.breaker.end(c, nil, false)
			return nil, nil, err
		}
	}
	return inside, func(err error) error {
		g.databases.calls.leave(g.namespace)
		g.server.calls.leave(g.namespace)
		return g.ended(c, err)
	}, nil
}

// ended takes note of how a call has ended, and returns its error as anybody may see it.
func (g *guard) ended(c *call, err error) error {
	if _, told := errors.AsType[*fleet.UnavailableError](err); told { // the breaker has ended it
		g.server.breaker.end(c, nil, false)
		return err
	}
	fault, is := g.server.database.Fault(err)
	if !is {
		if g.server.breaker.end(c, nil, err == nil) {
			g.databases.log.Info("A database is back", "namespace", g.namespace)
		}
		return err
	}
	told := &fleet.UnavailableError{Reason: fault.Reason, Err: err}
	var away *fleet.UnavailableError
	if fault.Away {
		away = told
	}
	if g.server.breaker.end(c, away, fault.Answered) || g.server.mayLog(g.databases.clock.Now()) {
		g.databases.log.Info("A call to a database has failed", "namespace", g.namespace, "detail", err.Error())
	}
	return told
}

// logEvery is how often a failed call to a server is told in the log.
const logEvery = 10 * time.Second

func (s *server) mayLog(now time.Time) bool {
	s.breaker.mu.Lock()
	defer s.breaker.mu.Unlock()
	if now.Sub(s.breaker.logged) < logEvery {
		return false
	}
	s.breaker.logged = now
	return true
}

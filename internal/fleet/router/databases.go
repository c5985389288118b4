package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

const (
	// secretEvery is how often a Secret is looked at again.
	secretEvery = 30 * time.Second
	// failedFirst and failedMost are when a database that could not be opened is tried again:
	// the first time, and at most, when that failed again and again.
	failedFirst, failedMost = 2 * time.Second, 30 * time.Second
	// openTimeout bounds the opening of a database.
	openTimeout = 20 * time.Second
	// secretTimeout bounds the reading of a Secret.
	secretTimeout = 10 * time.Second
	// idleAfter is when a database is closed that nobody asks for.
	idleAfter = 10 * time.Minute
	// sweepEvery is how often those are looked for.
	sweepEvery = 30 * time.Second
)

// Database is an open database. Many may use it.
type Database interface {
	fleet.ResultsKeeper
	// Guarded returns the same database with a guard before each call.
	Guarded(guard fleet.Guard) fleet.ResultsKeeper
	// Fault says what an error of a call means; is is false for what is no fault of the database.
	Fault(err error) (fault fleet.Fault, is bool)
	// Probe finds out whether the server answers, apart from all calls.
	Probe(ctx context.Context) error
	// Close waits for the calls under way.
	Close()
}

// Kind is how databases are opened.
type Kind struct {
	// Identity returns what is the same for URLs that one Database does for.
	Identity func(url string) (string, error)
	// Open opens the database at a URL.
	Open func(ctx context.Context, url string) (Database, error)
	// Reason says what may be told of an error of the above to anybody.
	Reason func(err error) string
}

// Limits bound what the databases of all namespaces take. Zero values stand for the defaults.
type Limits struct {
	// Calls is how many calls are made at once, over all databases. A namespace has at most
	// as many as are free besides.
	Calls int
	// CallsEach is how many are made at once to one database, by all who share it.
	CallsEach int
	// PerNamespace is how many databases a namespace may have open.
	PerNamespace int
}

// Defaults of Limits.
const (
	DefaultCalls        = 64
	DefaultCallsEach    = 8
	DefaultPerNamespace = 16
)

// Databases opens the database behind each Secret when it is first asked for, again
// when the Secret has changed, and closes those that nobody asks for. Secrets that name the
// same database and user share one. It is safe for concurrent use.
//
// Nobody waits for a database that was found to be away: it is tried again meanwhile.
type Databases struct {
	live   client.Reader
	kind   Kind
	limits Limits
	clock  clock.PassiveClock
	log    logr.Logger
	calls  *gate

	ctx     context.Context //nolint:containedctx // of what is opened for all who ask
	end     context.CancelFunc
	opening sync.WaitGroup

	mu      sync.Mutex
	entries map[client.ObjectKey]*entry
	servers map[string]*server // by Kind.Identity
	swept   time.Time
}

// entry is the database of one Secret.
type entry struct {
	server *server             // nil where there is none
	store  fleet.ResultsKeeper // of server, for the namespace of the Secret
	err    error               // why there is none
	failed int                 // how often in a row
	next   time.Time           // when to look again
	used   time.Time
	// looking is closed when who looks is done; nil while nobody does.
	looking chan struct{}
	gone    bool
}

// NewDatabases returns Databases that reads Secrets from live, past any cache, so that
// the right to get them is enough.
func NewDatabases(live client.Reader, clock clock.PassiveClock, log logr.Logger, kind Kind, limits Limits) *Databases {
	for _, l := range []struct {
		value *int
		or    int
	}{{&limits.Calls, DefaultCalls}, {&limits.CallsEach, DefaultCallsEach}, {&limits.PerNamespace, DefaultPerNamespace}} {
		if *l.value <= 0 {
			*l.value = l.or
		}
	}
	d := &Databases{
		live: live, kind: kind, limits: limits, clock: clock, log: log.WithName("databases"), calls: newGate(limits.Calls, true),
		entries: map[client.ObjectKey]*entry{}, servers: map[string]*server{},
	}
	d.ctx, d.end = context.WithCancel(context.Background()) //nolint:forbidigo // the life of the databases, which outlive each call; ended by Close
	return d
}

// Store returns the database that a Secret names. The error is a
// [*fleet.UnavailableError], which anybody may see, unless ctx has ended.
func (d *Databases) Store(ctx context.Context, secret client.ObjectKey) (fleet.Store, error) {
	store, err := d.keeper(ctx, secret)
	if err != nil {
		return nil, err
	}
	return store, nil
}

func (d *Databases) keeper(ctx context.Context, secret client.ObjectKey) (fleet.ResultsKeeper, error) {
	d.mu.Lock()
	e := d.entry(secret)
	if e.looking == nil && !d.clock.Now().Before(e.next) && d.ctx.Err() == nil {
		e.looking = make(chan struct{})
		d.opening.Go(func() { d.look(secret, e) }) //nolint:contextcheck // whoever asks first must not end it for the others
	}
	// What is known is told at once, and what is new next time.
	store, err, looking := e.store, e.err, e.looking
	d.mu.Unlock()
	if store != nil || err != nil {
		return store, err
	}
	if looking == nil {
		return nil, fleet.ErrNotReady // closed at the end
	}
	select {
	case <-looking:
	case <-ctx.Done():
		return nil, fmt.Errorf("open the database of Secret %q: %w", secret.Name, ctx.Err())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.store == nil && e.err == nil {
		return nil, fleet.ErrNotReady
	}
	return e.store, e.err
}

// Results returns where results are kept in each database that is open, once each, and the
// same each time.
func (d *Databases) Results(ctx context.Context) []fleet.Results {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []fleet.Results
	for _, e := range d.entries {
		s := e.server
		if s == nil || s.told {
			continue
		}
		if s.results == nil {
			if results, err := e.store.ResultsOf(ctx, fleet.Product{}); err == nil {
				s.results = results
			}
		}
		if s.told = true; s.results != nil {
			all = append(all, s.results)
		}
	}
	for _, e := range d.entries {
		if e.server != nil {
			e.server.told = false
		}
	}
	return all
}

// entry returns the entry of a Secret, and lets go of those that are not used any more.
func (d *Databases) entry(secret client.ObjectKey) *entry {
	now := d.clock.Now()
	if now.Sub(d.swept) >= sweepEvery {
		d.swept = now
		for key, e := range d.entries {
			if now.Sub(e.used) >= idleAfter {
				delete(d.entries, key)
				e.gone = true
				d.set(e, nil, nil, nil)
			}
		}
	}
	e := d.entries[secret]
	if e == nil {
		e = &entry{}
		d.entries[secret] = e
	}
	e.used = now
	return e
}

// set gives an entry another server, or none, and lets go of the one it had.
func (d *Databases) set(e *entry, s *server, store fleet.ResultsKeeper, err error) {
	if e.server != nil {
		d.release(e.server)
	}
	e.server, e.store, e.err = s, store, err
}

// look reads a Secret and opens the database that it names, if it is another one. A Secret
// that cannot be read leaves an open database as it is, unless it is known to be gone.
func (d *Databases) look(secret client.ObjectKey, e *entry) {
	d.mu.Lock()
	s := e.server // it is held by the entry, and by this call
	if s != nil {
		s.refs++
	}
	d.mu.Unlock()
	url, err := d.url(secret)
	keep := err != nil && s != nil && !apierrors.IsNotFound(err) && !errors.As(err, new(*missingKeyError))
	if !keep {
		old := s
		if s = nil; err == nil {
			s, err = d.acquire(secret.Namespace, e, url)
		}
		if old != nil {
			d.mu.Lock()
			d.release(old)
			d.mu.Unlock()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	close(e.looking)
	e.looking = nil
	if s != nil && s != e.server {
		// Others of the namespace may have been opened meanwhile.
		if full := d.room(secret.Namespace, e, s); full != nil {
			d.release(s)
			s, err = nil, full
		}
	}
	switch {
	case e.gone || d.ctx.Err() != nil:
		if s != nil {
			d.release(s)
		}
	case s == nil:
		if e.failed++; e.failed == 1 || e.failed%10 == 0 {
			d.log.Info("A database cannot be used", "namespace", secret.Namespace, "secret", secret.Name, "detail", err.Error())
		}
		d.set(e, nil, nil, d.told(secret.Name, err))
		e.next = d.clock.Now().Add(min(failedMost, failedFirst<<min(e.failed-1, 10)))
	case s == e.server:
		d.release(s) // the entry holds it already
		e.failed, e.next = 0, d.clock.Now().Add(secretEvery)
	default:
		d.set(e, s, s.database.Guarded(&guard{databases: d, server: s, namespace: secret.Namespace}), nil)
		e.failed, e.next = 0, d.clock.Now().Add(secretEvery)
	}
}

// told returns an error of opening as anybody may see it.
func (d *Databases) told(secret string, err error) error {
	if _, ok := errors.AsType[*secretError](err); ok {
		return &fleet.UnavailableError{Reason: err.Error(), Err: err}
	}
	reason := ""
	if known, ok := errors.AsType[*fleet.UnavailableError](err); ok {
		reason = known.Reason
	} else {
		reason = d.kind.Reason(err)
	}
	return &fleet.UnavailableError{Reason: fmt.Sprintf("open the database of Secret %q: %s", secret, reason), Err: err}
}

// secretError is an error of reading a Secret, which holds nothing of what is in it.
type secretError struct {
	doing string
	err   error
}

func (e *secretError) Error() string { return e.doing + ": " + e.err.Error() }
func (e *secretError) Unwrap() error { return e.err }

// missingKeyError : a Secret has no URL in it.
type missingKeyError struct{}

func (*missingKeyError) Error() string { return "it has no key " + v1alpha1.DatabaseURLKey }

func (d *Databases) url(key client.ObjectKey) (string, error) {
	ctx, cancel := context.WithTimeout(d.ctx, secretTimeout)
	defer cancel()
	return ReadURL(ctx, d.live, key)
}

// ReadURL returns the URL of the database that a Secret names.
func ReadURL(ctx context.Context, live client.Reader, key client.ObjectKey) (string, error) {
	var secret corev1.Secret
	err := live.Get(ctx, key, &secret)
	// One that was made from a file often ends with a line end.
	url := bytes.TrimSpace(secret.Data[v1alpha1.DatabaseURLKey])
	doing := fmt.Sprintf("read Secret %q", key.Name)
	switch {
	case apierrors.IsForbidden(err):
		return "", &secretError{doing + ": bind the ClusterRole batchtask-database-reader in the namespace", err}
	case err != nil:
		return "", &secretError{doing, err}
	case len(url) == 0:
		return "", &secretError{doing, &missingKeyError{}}
	}
	return string(url), nil
}

// Close closes all databases.
func (d *Databases) Close() {
	d.mu.Lock()
	d.end() // nobody begins to look any more
	d.mu.Unlock()
	d.opening.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, e := range d.entries {
		delete(d.entries, key)
		e.gone = true
		if e.server != nil {
			d.releaseAnd(e.server, Database.Close)
			e.server, e.store = nil, nil
		}
	}
}

package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

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
	// failedEvery is how often a database that could not be opened is tried again.
	failedEvery = 2 * time.Second
	// openTimeout bounds the opening of a database, for which others may wait.
	openTimeout = 20 * time.Second
	// idleAfter is when a database is closed that nobody asks for.
	idleAfter = 10 * time.Minute
)

// errSilent : a database could not be opened in time.
var errSilent = fmt.Errorf("the database has not answered in %v", openTimeout)

// Database is an open database.
type Database interface {
	fleet.ResultsKeeper
	// Close waits for the calls under way.
	Close()
}

// Databases opens the database behind each Secret when it is first asked for, again
// when the Secret has changed, and closes those that nobody asks for. It is safe for
// concurrent use.
type Databases struct {
	live  client.Reader
	open  func(ctx context.Context, url string) (Database, error)
	clock clock.PassiveClock

	mu      sync.Mutex
	entries map[client.ObjectKey]*entry
}

// entry is the database of one Secret. Whoever holds lock opens it; others wait, and
// no database makes those of other Secrets wait.
type entry struct {
	lock     sync.Mutex
	url      string
	database Database
	err      error // why there is none
	checked  time.Time
	used     time.Time // guarded by Databases.mu
}

// NewDatabases returns Databases that reads Secrets from live, past any cache, so that
// the right to get them is enough, and opens databases with open. An error of open
// must hold no credentials.
func NewDatabases(live client.Reader, clock clock.PassiveClock, open func(ctx context.Context, url string) (Database, error)) *Databases {
	return &Databases{live: live, open: open, clock: clock, entries: map[client.ObjectKey]*entry{}}
}

// Store returns the database that a Secret names. An error tells what is wrong, for
// whoever looks after the Product; it holds no credentials.
func (d *Databases) Store(ctx context.Context, secret client.ObjectKey) (fleet.Store, error) {
	e := d.entry(secret)
	e.lock.Lock()
	defer e.lock.Unlock()
	now := d.clock.Now()
	valid := secretEvery
	if e.err != nil {
		valid = failedEvery
	}
	if now.Sub(e.checked) >= valid {
		d.refresh(ctx, secret, e)
		e.checked = d.clock.Now() // opening may have taken long
		if ctx.Err() != nil && e.err != nil {
			e.checked = time.Time{} // it may say nothing but that this caller has gone
		}
	}
	switch {
	case e.err != nil:
		return nil, e.err
	case e.database == nil: // closed at the end
		return nil, fleet.ErrNotReady
	}
	return e.database, nil
}

// Results returns where results are kept in each database that is open.
func (d *Databases) Results(ctx context.Context) []fleet.Results {
	d.mu.Lock()
	entries := slices.Collect(maps.Values(d.entries))
	d.mu.Unlock()
	var all []fleet.Results
	for _, e := range entries {
		e.lock.Lock()
		database := e.database
		e.lock.Unlock()
		if database == nil {
			continue
		}
		if results, err := database.ResultsOf(ctx, fleet.Product{}); err == nil && results != nil {
			all = append(all, results)
		}
	}
	return all
}

// entry returns the entry of a Secret, and closes those that are not used any more.
func (d *Databases) entry(secret client.ObjectKey) *entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.clock.Now()
	for key, e := range d.entries {
		if now.Sub(e.used) >= idleAfter {
			delete(d.entries, key)
			go e.close()
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

// refresh opens the database anew if its URL is another. A Secret that cannot be read
// leaves an open database as it is, unless it is known to be gone.
func (d *Databases) refresh(ctx context.Context, secret client.ObjectKey, e *entry) {
	url, err := d.url(ctx, secret)
	switch {
	case err != nil && (e.database == nil || apierrors.IsNotFound(err)):
		e.replace("", nil, err)
	case err != nil || url == e.url && e.database != nil:
		e.err = nil
	default:
		ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errSilent)
		defer cancel()
		database, err := d.open(ctx, url)
		if err != nil && errors.Is(context.Cause(ctx), errSilent) {
			err = errSilent // it says more than the call that was under way
		}
		if err != nil {
			e.replace("", nil, fmt.Errorf("open the database of Secret %q: %w", secret.Name, err))
			return
		}
		e.replace(url, database, nil)
	}
}

func (d *Databases) url(ctx context.Context, key client.ObjectKey) (string, error) {
	var secret corev1.Secret
	err := d.live.Get(ctx, key, &secret)
	// One that was made from a file often ends with a line end.
	url := bytes.TrimSpace(secret.Data[v1alpha1.DatabaseURLKey])
	switch {
	case apierrors.IsForbidden(err):
		return "", fmt.Errorf("read Secret %q: bind the ClusterRole batchtask-database-reader in the namespace: %w", key.Name, err)
	case err != nil:
		return "", fmt.Errorf("read Secret %q: %w", key.Name, err)
	case len(url) == 0:
		return "", fmt.Errorf("Secret %q has no key %s", key.Name, v1alpha1.DatabaseURLKey) //nolint:staticcheck // a kind
	}
	return string(url), nil
}

func (e *entry) replace(url string, database Database, err error) {
	if old := e.database; old != nil {
		go old.Close()
	}
	e.url, e.database, e.err = url, database, err
}

func (e *entry) close() {
	e.lock.Lock()
	defer e.lock.Unlock()
	if e.database != nil {
		e.database.Close()
		e.database = nil
	}
}

// Close closes all databases.
func (d *Databases) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, e := range d.entries {
		delete(d.entries, key)
		e.close()
	}
}

package router_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/internal/fleet"
)

// Secrets that name the same database with the same user share one, which goes with the last.
func TestSecretsShareADatabase(t *testing.T) {
	s := newSite(t, nil)
	const secrets = 40
	for i := range secrets {
		s.put(fmt.Sprint("same-", i), "one")
	}
	var asking sync.WaitGroup
	for i := range secrets {
		asking.Go(func() { s.want("the same", fmt.Sprint("same-", i), "one", "") })
	}
	asking.Wait()
	if len(s.opened) != 1 {
		t.Fatalf("%d databases were opened for %d Secrets that name one", len(s.opened), secrets)
	}
	if got := len(s.Results(t.Context())); got != 1 {
		t.Errorf("results are kept in %d places, want 1", got)
	}
	// One that is changed leaves the others alone.
	s.put("same-0", "two")
	s.pass(31 * time.Second)
	s.want("changed", "same-0", "two", "")
	s.want("the same", "same-1", "one", "")
	select {
	case <-s.opened[0].closed:
		t.Error("the database is closed while Secrets lead to it")
	default:
	}
	s.pass(11 * time.Minute)
	s.want("changed", "same-0", "two", "") // nobody asks for the others
	s.wantClosed("the database that nobody asks for", 0)
}

// A namespace has so many databases, and says which limit it has met.
func TestDatabasesOfANamespace(t *testing.T) {
	s := newSite(t, nil)
	for _, name := range []string{"a", "b", "c", "d"} {
		s.put(name, name)
	}
	s.put("again", "a")
	for _, name := range []string{"a", "b", "c"} {
		s.want(name, name, name, "")
	}
	s.want("the fourth", "d", "", "uses 3 databases already, and may use 3 (--databases-per-namespace)")
	s.want("one that is open", "again", "a", "")
	other := s.env.Namespace(t)
	mine := s.namespace
	s.namespace = other
	s.put("d", "d")
	s.want("another namespace", "d", "d", "")
	s.namespace = mine
}

// It is so also where many are opened at once. And one that is changed comes in the place of
// what it was.
func TestDatabasesOfANamespaceAtOnce(t *testing.T) {
	s := newSite(t, nil)
	hold := make(chan struct{})
	s.hold = hold
	const secrets = 12
	for i := range secrets {
		name := fmt.Sprint("silent-", i)
		s.put(name, name)
	}
	var asking sync.WaitGroup
	var open, refused atomic.Int64
	for i := range secrets {
		asking.Go(func() {
			if _, err := s.store(fmt.Sprint("silent-", i)); err == nil {
				open.Add(1)
			} else if strings.Contains(err.Error(), "--databases-per-namespace") {
				refused.Add(1)
			}
		})
	}
	eventually(t, "all are being opened", func() (bool, any) { return s.opening.Load() == secrets, s.opening.Load() })
	close(hold)
	asking.Wait()
	if open.Load() != 3 || refused.Load() != secrets-3 {
		t.Fatalf("%d databases are open and %d refused, want 3 and %d", open.Load(), refused.Load(), secrets-3)
	}
	for i := range secrets {
		name := fmt.Sprint("silent-", i)
		if _, err := s.store(name); err != nil {
			continue
		}
		s.put(name, "changed")
		s.pass(31 * time.Second)
		eventually(t, "changed at the limit", func() (bool, any) {
			url, err := s.store(name)
			if err != nil {
				t.Fatalf("a database was refused that comes in the place of another: %v", err)
			}
			return url == "changed", url
		})
		break
	}
}

// However many databases of a namespace say nothing, those of others are opened, and who asks
// for a silent one waits no longer than he likes, and not at all when it is known.
func TestSilentDatabasesHoldUpNobody(t *testing.T) {
	s := newSite(t, nil)
	hold := make(chan struct{})
	s.hold = hold
	const silent = 100
	for i := range silent {
		name := fmt.Sprint("silent-", i)
		s.put(name, name)
	}
	ctx, cancel := context.WithCancel(t.Context())
	mine := s.namespace
	var asking sync.WaitGroup
	for i := range silent {
		asking.Go(func() {
			_, err := s.Store(ctx, client.ObjectKey{Namespace: mine, Name: fmt.Sprint("silent-", i)})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v of who has gone", err)
			}
		})
	}
	s.namespace = s.env.Namespace(t)
	s.put("db", "one")
	s.want("another namespace", "db", "one", "")
	cancel()
	asking.Wait()
	s.namespace = mine
	s.fail(errors.New("refused"))
	close(hold)
	s.want("known to be away", "silent-0", "", "it is not to be had")
}

// Calls to a database that is away fail at once, and one of them tries whether it is back.
func TestBreaker(t *testing.T) {
	s := newSite(t, nil)
	s.put("db", "one")
	s.want("open", "db", "one", "")
	var calls atomic.Int64
	var fault atomic.Value
	fault.Store(errAway)
	s.opened[0].fault = func() error {
		calls.Add(1)
		if err, is := fault.Load().(error); is && err.Error() != "none" {
			return err
		}
		return nil
	}
	store, err := s.Store(t.Context(), client.ObjectKey{Namespace: s.namespace, Name: "db"})
	if err != nil {
		t.Fatal(err)
	}
	want := func(when, text string, n int64) {
		t.Helper()
		err := store.Sync(t.Context(), "")
		if (err == nil) != (text == "") || err != nil && err.Error() != text || calls.Load() != n {
			t.Errorf("%s: error %v after %d calls, want %q after %d", when, err, calls.Load(), text, n)
		}
		if told, ok := errors.AsType[*fleet.UnavailableError](err); ok && strings.Contains(told.Error(), "secret") {
			t.Errorf("%s: people are told %q", when, told)
		}
	}
	want("the first", "it is away", 1)
	for range 5 {
		want("at once after that", "it is away", 1)
	}
	s.pass(1100 * time.Millisecond)
	want("a try", "it is away", 2)
	s.pass(1100 * time.Millisecond)
	want("the pause is longer now", "it is away", 2)
	s.pass(1100 * time.Millisecond)
	fault.Store(errors.New("none"))
	want("it is back", "", 3)
	want("and stays", "", 4)
	// What is wrong with a statement does not keep others from calling.
	fault.Store(errors.New("secret: a statement"))
	want("a fault", "it is away", 5)
	want("a fault again", "it is away", 6)
}

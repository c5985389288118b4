package postgres

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

// Stores share a number of connections: one that has none gets one that another keeps for
// later, and waits for one that is in use.
func TestConnectionsAreBounded(t *testing.T) {
	server := pgtest.Start(t)
	const most = 3
	connections := NewConnections(most)
	var stores []*Store
	for range 6 {
		stores = append(stores, open(t, Options{URL: server.Database(t), Connections: connections}))
	}
	for range 3 {
		for i, store := range stores {
			if err := store.Sync(t.Context(), ""); err != nil {
				t.Errorf("store %d: %v", i, err)
			}
			if got := connections.Open(); got > most {
				t.Fatalf("%d connections, want at most %d", got, most)
			}
		}
	}
	// All at once.
	var calling sync.WaitGroup
	for range 4 {
		for i, store := range stores {
			calling.Go(func() {
				if err := store.Sync(t.Context(), ""); err != nil {
					t.Errorf("store %d: %v", i, err)
				}
			})
		}
	}
	calling.Wait()
	if got := connections.Open(); got > most {
		t.Errorf("%d connections, want at most %d", got, most)
	}
	// None is free: who waits is told which limit that is.
	held, err := stores[0].pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	one := NewConnections(1)
	if err := one.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := one.take(ctx); !errors.Is(err, errConnections) || Reason(err) != reasonConnections {
		t.Errorf("error %v, want %v", err, errConnections)
	}
	one.give()
	if err := one.take(t.Context()); err != nil || one.Open() != 1 {
		t.Errorf("a place that was given back: %v, %d open", err, one.Open())
	}
	for _, store := range stores[1:] {
		store.Close()
	}
}

// What people are told of a database holds nothing of what is in its URL, nor what was found
// at its address.
func TestReasons(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t)
	closed := pgtest.URLVia(t, url, "127.0.0.1:1")
	silent := impostor(t, false, func(net.Conn) {})
	for name, tt := range map[string]struct{ url, want string }{
		"a closed port":        {closed, reasonUnreachable},
		"a silent port":        {silent, reasonUnreachable},
		"no such host":         {pgtest.URLVia(t, url, "nowhere.invalid:5432"), reasonUnreachable},
		"all is well":          {url, ""},
		"a wrong password":     {strings.Replace(url, pgtest.Password, "wrong", 1), reasonLogin},
		"a database not there": {strings.Replace(url, "/test_", "/none_", 1), reasonLogin},
		"TLS is asked for":     {strings.Replace(url, "sslmode=disable", "sslmode=verify-full", 1), reasonUnreachable},
	} {
		store, err := Open(t.Context(), Options{URL: tt.url, ConnectTimeout: 5 * time.Second})
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else {
				store.Close()
			}
			continue
		}
		if err == nil || Reason(err) != tt.want {
			t.Errorf("%s: people are told %q, want %q (%v)", name, Reason(err), tt.want, err)
		}
	}
}

package shim

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	testingclock "k8s.io/utils/clock/testing"
)

func TestPeers(t *testing.T) {
	clock := testingclock.NewFakePassiveClock(time.Unix(1_700_000_000, 0))
	p := newPeers(clock, 10)
	if p.of("10.0.0.1:1") != p.of("10.0.0.1:2") || p.of("10.0.0.1:1") == p.of("10.0.0.2:1") {
		t.Error("peers are told apart by address")
	}
	if p.of("[2001:db8::1]:1") != p.of("[2001:db8::ffff]:1") || p.of("[2001:db8::1]:1") == p.of("[2001:db8:0:1::1]:1") {
		t.Error("peers of IPv6 are told apart by network")
	}
	a, b := p.of("10.0.0.1:1"), p.of("10.0.0.2:1")
	for i := range failuresAtOnce {
		if _, tooMany := p.failed(a); tooMany {
			t.Fatalf("failure %d is one too many", i+1)
		}
	}
	for range 5 {
		if _, tooMany := p.failed(a); !tooMany {
			t.Error("one failure too many is not")
		}
	}
	if _, tooMany := p.failed(b); tooMany {
		t.Error("another peer's failures count")
	}
	clock.SetTime(clock.Now().Add(time.Second))
	if untold, tooMany := p.failed(a); tooMany || untold != 5 {
		t.Errorf("after a second: %d failures are told of, too many %v; want 5", untold, tooMany)
	}
	// What is remembered is bounded, and forgotten when it means nothing any more.
	for i := range 2 * maxPeers {
		p.failed(p.of(fmt.Sprintf("10.1.%d.%d:1", i/256, i%256)))
	}
	if len(p.all) > maxPeers {
		t.Errorf("%d peers are remembered", len(p.all))
	}
	clock.SetTime(clock.Now().Add(time.Hour))
	p.of("10.0.0.3:1")
	if len(p.all) != 1 {
		t.Errorf("%d peers are remembered after an hour, want 1", len(p.all))
	}
}

// Calls of an address with too many failures take turns; others do not wait for them.
func TestPeersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := testingclock.NewFakePassiveClock(time.Unix(1_700_000_000, 0))
		p := newPeers(clock, 0.001)
		bad, good := p.of("10.0.0.1:1"), p.of("10.0.0.2:1")
		for range failuresAtOnce {
			p.failed(bad)
		}
		done, err := p.turn(t.Context(), bad)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if _, err := p.turn(t.Context(), good); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.turn(ctx, bad); err == nil {
			t.Error("two calls of one address have their turn at once")
		}
		done()
		again, err := p.turn(t.Context(), bad)
		if err != nil {
			t.Fatal(err)
		}
		again()
		if len(p.turns) != 0 || len(bad.turn) != 0 {
			t.Error("a turn is never over")
		}
	})
}

package shim

import (
	"context"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/utils/clock"
)

const (
	// DefaultFailures is how many calls a second of one address may fail before anybody knows
	// whose they are.
	DefaultFailures = 20
	// failuresAtOnce is how many of them may do so at once.
	failuresAtOnce = 200
	// maxPeers is how many addresses are told apart; the others share one.
	maxPeers = 4096
)

// peers bounds what calls cost that fail before their caller is known: their lines in the log,
// and the hashing. They are told apart by address. A call whose signature is good is served
// whatever others did from its address, since those who come through one proxy share it: all
// that it may have to do is to wait for its turn.
type peers struct {
	clock clock.PassiveClock
	rate  rate.Limit
	turns chan struct{} // of calls from addresses with too many failures

	mu    sync.Mutex
	swept time.Time
	all   map[string]*peer
	rest  *peer // where there is no room for another
}

// peer is one address.
type peer struct {
	failures *rate.Limiter
	turn     chan struct{}
	untold   int // failures that are not in the log yet
}

func newPeers(clock clock.PassiveClock, perSecond float64) *peers {
	p := &peers{
		clock: clock, rate: rate.Limit(perSecond), turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		swept: clock.Now(), all: map[string]*peer{},
	}
	p.rest = p.newPeer()
	return p
}

func (p *peers) newPeer() *peer {
	return &peer{failures: rate.NewLimiter(p.rate, failuresAtOnce), turn: make(chan struct{}, 1)}
}

// of returns the peer with a remote address, as net/http has it.
func (p *peers) of(remote string) *peer {
	name := remote
	if address, err := netip.ParseAddrPort(remote); err == nil {
		// One host has as many addresses of IPv6 as it likes in its network.
		bits := 32
		if address.Addr().Unmap().Is6() {
			bits = 64
		}
		if network, err := address.Addr().Unmap().Prefix(bits); err == nil {
			name = network.String()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock.Now()
	if now.Sub(p.swept) >= sweepEvery {
		p.swept = now
		for name, one := range p.all {
			if one.failures.TokensAt(now) >= failuresAtOnce {
				delete(p.all, name)
			}
		}
	}
	one := p.all[name]
	switch {
	case one != nil:
	case len(p.all) >= maxPeers:
		return p.rest
	default:
		one = p.newPeer()
		p.all[name] = one
	}
	return one
}

// turn waits until the signature of a call may be looked at. Calls of an address with too many
// failures take turns, so that they keep few cores busy; all others go on at once.
func (p *peers) turn(ctx context.Context, from *peer) (done func(), err error) {
	if from.failures.TokensAt(p.clock.Now()) >= 1 {
		return func() {}, nil
	}
	for _, turn := range []chan struct{}{from.turn, p.turns} {
		select {
		case turn <- struct{}{}:
		case <-ctx.Done():
			if turn == p.turns {
				<-from.turn
			}
			return nil, ctx.Err()
		}
	}
	return func() { <-p.turns; <-from.turn }, nil
}

// failed counts a call that failed. It reports whether that is one too many, and otherwise how
// many were before that nobody was told of.
func (p *peers) failed(from *peer) (untold int, tooMany bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !from.failures.AllowN(p.clock.Now(), 1) {
		from.untold++
		return 0, true
	}
	untold, from.untold = from.untold, 0
	return untold, false
}

package shim

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/utils/clock"

	"batchtask.dev/operator/internal/qcloud"
)

// Defaults of the rate of calls.
const (
	DefaultRate  = 100 // calls a second of one account
	DefaultBurst = 100 // calls at once
)

// sweepEvery is how often what is not needed any more is forgotten.
const sweepEvery = time.Minute

// Limits bounds the rate of each account, whatever credentials it uses. It is safe for concurrent use.
type Limits struct {
	clock clock.PassiveClock
	rate  rate.Limit
	burst int

	mu      sync.Mutex
	swept   time.Time
	buckets map[string]*rate.Limiter
}

var _ qcloud.Limiter = (*Limits)(nil)

// NewLimits lets each account make perSecond calls a second in the long run, and
// burst at once. Both are positive.
func NewLimits(perSecond float64, burst int, clock clock.PassiveClock) *Limits {
	return &Limits{clock: clock, rate: rate.Limit(perSecond), burst: burst, swept: clock.Now(), buckets: map[string]*rate.Limiter{}}
}

// Allow implements [qcloud.Limiter].
func (l *Limits) Allow(account string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	if now.Sub(l.swept) >= sweepEvery {
		l.sweep(now)
	}
	bucket := l.buckets[account]
	if bucket == nil {
		bucket = rate.NewLimiter(l.rate, l.burst)
		l.buckets[account] = bucket
	}
	return bucket.AllowN(now, 1)
}

// sweep forgets the buckets that are full: a new one would be no different.
func (l *Limits) sweep(now time.Time) {
	l.swept = now
	for account, bucket := range l.buckets {
		if bucket.TokensAt(now) >= float64(l.burst) {
			delete(l.buckets, account)
		}
	}
}

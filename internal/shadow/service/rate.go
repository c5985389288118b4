package service

import "time"

// maxLimited is how many devices a limiter remembers at the most, twice: 64 bytes
// each, or so, besides their names.
const maxLimited = 100_000

// backlog is for how long nobody may have been connected without a device that keeps to its
// rate losing anything: what it has sent meanwhile, and the broker has kept, comes at once. A
// failover takes a quarter of that.
const backlog = time.Minute

// limiter holds each device to a rate. It remembers a device only as long as it has
// to: one that was silent for the time in which its allowance fills up is as good
// as new. A limiter is not safe for concurrent use.
type limiter struct {
	rate, burst float64
	max         int
	// Devices seen in the current period and in the one before. A period is the time
	// in which an empty allowance fills up.
	current, last map[device]allowance
	began         time.Time
	period        time.Duration
	// connected is when the messages began to come from another connection.
	connected time.Time
}

// allowance is how many messages a device may send, as of a time.
type allowance struct {
	messages float64
	at       time.Time
}

// newLimiter allows each device rate messages a second, and burst at once.
func newLimiter(rate float64, burst int) *limiter {
	return &limiter{
		rate: rate, burst: float64(burst), max: maxLimited, current: map[device]allowance{},
		period: time.Duration(float64(burst) / rate * float64(time.Second)),
	}
}

// connect tells that a connection was made: in the time that follows, what has waited at the
// broker may come.
func (l *limiter) connect(now time.Time) {
	l.current, l.last = map[device]allowance{}, nil
	l.began, l.connected = now, now
}

// fresh is the allowance of a device that was not heard of.
func (l *limiter) fresh(now time.Time) allowance {
	if now.Sub(l.connected) < backlog {
		return allowance{l.burst + l.rate*backlog.Seconds(), now}
	}
	return allowance{l.burst, now}
}

// allow says whether a device may send a message now, and counts it if so.
func (l *limiter) allow(d device, now time.Time) bool {
	// Too many devices for a period end it early: some get a new allowance too soon,
	// which is better than memory without bounds.
	// After a connection nobody is forgotten for as long as whoever is new may send more.
	ended := now.Sub(l.began) >= l.period && now.Sub(l.connected) >= backlog
	if ended || len(l.current) >= l.max {
		if now.Sub(l.began) >= 2*l.period {
			l.current = nil // nobody was heard of for a whole period
		}
		l.last, l.current, l.began = l.current, map[device]allowance{}, now
	}
	a, known := l.current[d]
	if !known {
		a, known = l.last[d]
	}
	if !known {
		a = l.fresh(now)
	}
	a.messages = max(a.messages, min(l.burst, a.messages+now.Sub(a.at).Seconds()*l.rate))
	a.at = now
	allowed := a.messages >= 1
	if allowed {
		a.messages--
	}
	l.current[d] = a
	return allowed
}

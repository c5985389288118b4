package shim

import (
	"bytes"
	"container/list"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"batchtask.dev/operator/internal/qcloud"
)

const (
	// maxBodies is how many bytes of bodies there are in memory at once, those of calls that
	// wait and are worked on among them. What is made of a body is several times as long.
	maxBodies = 64 << 20
	// bodyStep is how much of a body is read at a time, and charged before.
	bodyStep = 16 << 10
)

// bodies bounds the memory for the bodies of calls. Nobody knows yet who sends one, and a
// proxy's callers have one address, so none is refused for who sends it: where there is no
// room, the body that has been on its way longest gives way. Those of callers that send as
// fast as they can are here within moments.
type bodies struct {
	metrics *Metrics

	mu       sync.Mutex
	left     int
	arriving list.List      // of *body, the oldest first; also those that wait to be verified
	accounts map[string]int // bytes, of those that are known to be an account's
}

// body is that of one call.
type body struct {
	in      *bodies
	bytes   int
	account string
	stop    func() // ends its reading, or its waiting
	place   *list.Element
	evicted bool
}

// errGaveWay : the body was long on its way, or waited long to be verified, and others needed
// its memory.
var errGaveWay = errors.New("the body took long to arrive, or to be verified, and the server has no memory left for such: send it faster, or again")

func newBodies(metrics *Metrics, most int) *bodies {
	return &bodies{metrics: metrics, left: most, accounts: map[string]int{}}
}

// receive reads the body of a call, so that r has it in memory. It comes before the call
// gets one of the places: who sends slowly, and has shown no credentials yet, takes no place
// from others. The body must be released.
func (b *bodies) receive(w http.ResponseWriter, r *http.Request) *body {
	one := &body{in: b, stop: func() { _ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) }}
	b.mu.Lock()
	one.place = b.arriving.PushBack(one)
	b.mu.Unlock()
	content, err := one.read(io.LimitReader(r.Body, qcloud.MaxBytes+1)) // one more is too many
	b.mu.Lock()
	b.arriving.Remove(one.place)
	if one.evicted {
		err = errGaveWay
	}
	b.mu.Unlock()
	var all io.Reader = bytes.NewReader(content)
	if err != nil {
		all = io.MultiReader(all, failing{err})
	}
	r.Body = readBody{all, r.Body}
	return one
}

func (o *body) read(from io.Reader) (content []byte, err error) {
	for {
		if len(content) == cap(content) {
			if !o.grow() {
				return content, errGaveWay
			}
			content = append(make([]byte, 0, len(content)+bodyStep), content...) // as much as was charged
		}
		n, err := from.Read(content[len(content):cap(content)])
		content = content[:len(content)+n]
		if errors.Is(err, io.EOF) {
			return content, nil
		}
		if err != nil {
			return content, err
		}
	}
}

// grow charges another step. Where there is no room, the oldest of those that are still
// arriving give way, in the end this one.
func (o *body) grow() bool {
	b := o.in
	b.mu.Lock()
	defer b.mu.Unlock()
	for e := b.arriving.Front(); e != nil && b.left < bodyStep; e = e.Next() {
		if oldest, _ := e.Value.(*body); !oldest.evicted {
			oldest.evicted = true
			b.left += oldest.bytes
			oldest.bytes = 0
			oldest.stop()
			b.metrics.refused.WithLabelValues(limitBodies).Inc()
		}
	}
	if o.evicted {
		return false
	}
	b.left -= bodyStep
	o.bytes += bodyStep
	return true
}

// waits lets a body that is here give way as one that arrives does, until over is called, which
// tells whether it has: nobody knows yet whose it is, so it is in no account's share. stop ends
// the waiting.
func (o *body) waits(stop func()) (over func() error) {
	b := o.in
	b.mu.Lock()
	defer b.mu.Unlock()
	o.stop, o.place = stop, b.arriving.PushBack(o)
	return func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.arriving.Remove(o.place)
		if o.evicted {
			return errGaveWay
		}
		return nil
	}
}

// belongsTo charges the body to an account, once that is known. It reports whether the account
// may have it: at most a seventh of what is left then, and so never more than an eighth of all.
func (o *body) belongsTo(account string) bool {
	b := o.in
	b.mu.Lock()
	defer b.mu.Unlock()
	held := b.accounts[account]
	if held > 0 && held+o.bytes > share(b.left) {
		return false
	}
	b.accounts[account] = held + o.bytes
	o.account = account
	return true
}

// release gives the memory back; a second time it does nothing.
func (o *body) release() {
	b := o.in
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += o.bytes
	if o.account != "" {
		if b.accounts[o.account] -= o.bytes; b.accounts[o.account] <= 0 {
			delete(b.accounts, o.account)
		}
	}
	o.bytes, o.account = 0, ""
}

// readBody is a body that was read.
type readBody struct {
	io.Reader
	io.Closer
}

// failing is where a body that was read has ended early.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

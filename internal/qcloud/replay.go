package qcloud

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync"
)

// sweepEvery is how often, in seconds, what has expired is forgotten. Whether a
// call is a replay does not depend on it.
const sweepEvery = 10

// mark tells a call from the others of its caller and Timestamp: in V2 its Nonce, with TC3,
// which has none, the first half of its signature.
type mark [16]byte

func markOfNonce(nonce uint64) (m mark) {
	binary.BigEndian.PutUint64(m[8:], nonce)
	return m
}

func markOfSignature(signature string) (m mark) {
	_, _ = hex.Decode(m[:], []byte(signature[:2*len(m)])) // 64 digits, as the pattern says
	return m
}

// Outcome is what became of a call with TC3. Equal calls share it, where a caller that asks
// again within the second may only want to know the answer.
type Outcome struct {
	action string
	done   chan struct{} // nil where nothing is kept of it
	result Result
	err    *Error
}

// outcomeless are the outcomes of calls of which nothing is kept but their action: one for all
// of an action, since a caller may make many.
var outcomeless = func() map[string]*Outcome {
	all := map[string]*Outcome{"": {}} // the actions that are not known
	for _, action := range []string{ActionDescribeTask, ActionDescribeTasks, ActionDescribeDeviceShadow, ActionUpdateDeviceShadow, ActionPublishMessage} {
		all[action] = &Outcome{action: action}
	}
	return all
}()

func newOutcome(action string) *Outcome {
	if action == ActionCreateTask || action == ActionCancelTask {
		return &Outcome{action: action, done: make(chan struct{})}
	}
	if o, known := outcomeless[action]; known {
		return o
	}
	return outcomeless[""]
}

// Settle tells what became of the call; it must be called once, and does nothing on nil.
// Of an error it keeps what fits into memory for each call: the kind and the beginning.
func (o *Outcome) Settle(result Result, err error) {
	if o == nil || o.done == nil {
		return
	}
	o.result = result
	if err != nil {
		const most = 128 // bytes of a detail
		e := AsError(err)
		o.err = &Error{Kind: e.Kind, Parameter: e.Parameter, Detail: e.Detail}
		if len(e.Detail) > most {
			o.err.Detail = "the first answer to this call says what"
		}
	}
	close(o.done)
}

// Wait returns what became of the call once that is known.
func (o *Outcome) Wait(ctx context.Context) (Result, error) {
	select {
	case <-o.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the first of two equal calls: %w", ctx.Err())
	}
	if o.err != nil {
		return nil, o.err
	}
	return o.result, nil
}

// changes reports whether the call changes anything.
func (o *Outcome) changes() bool {
	switch o.action {
	case ActionCreateTask, ActionCancelTask, ActionUpdateDeviceShadow, ActionPublishMessage:
		return true
	default:
		return false
	}
}

// pair are the credentials of a caller. Another account may have a pair with the same
// SecretId; it shares nothing with this one.
type pair struct{ account, secretID string }

// calls remembers those of the time in which a Timestamp is accepted.
type calls struct {
	most int // remembered calls of one caller

	mu      sync.Mutex
	swept   int64
	callers map[pair]*seen
}

// seen are the calls of one caller: by Timestamp, so that a second expires as one.
type seen struct {
	count  int
	bySent map[int64]map[mark]*Outcome // nil for a call with a Nonce
}

func newCalls(most int) *calls {
	return &calls{most: most, callers: map[pair]*seen{}}
}

// add remembers a call that was sent at sent (Unix seconds). It fails if the call
// was seen before, if this caller has too many that count, or as allow does. It
// asks allow, which must not block, only about calls that are carried out: repeating what
// another has signed must not use up that other's rate. And it remembers only
// what allow lets pass, so that the same call can be tried again later.
//
// A call with TC3 has an outcome, another none (nil). Of two equal ones within a second the
// second cannot be told from a replay. One that changes nothing may be made again. One that
// makes or cancels a task is answered as the first was, whose outcome is returned: so little
// is kept of it, and whether the task exists is what a caller must know. Another is refused,
// and so is one that has changed something by another action, which need not be signed. A call
// that reads says nothing about one that changes: DescribeTask and CancelTask of a task within
// a second have the same body, and so the same signature.
//
// What was sent before oldest is not accepted any more and may be forgotten; a
// clock that is set back makes it acceptable again, and then it is not recognised.
func (n *calls) add(by pair, sent int64, m mark, outcome *Outcome, oldest int64, allow func() error) (earlier *Outcome, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if oldest-n.swept >= sweepEvery || oldest < n.swept {
		n.sweep(oldest)
	}
	s := n.callers[by]
	if s == nil {
		s = &seen{bySent: map[int64]map[mark]*Outcome{}}
		n.callers[by] = s
	}
	if was, exists := s.bySent[sent][m]; exists {
		switch {
		case was == nil || outcome == nil:
			return nil, Errorf(KindReplay, "Nonce", "was used before with this Timestamp")
		case !outcome.changes():
			return nil, allow()
		case !was.changes():
			if err := allow(); err != nil {
				return nil, err
			}
			s.bySent[sent][m] = outcome
			return nil, nil //nolint:nilnil // there is no earlier one
		case was.action != outcome.action:
			return nil, Errorf(KindReplay, "X-TC-Action", "was another when this signature was used before")
		case was.done == nil:
			return nil, Errorf(KindReplay, "", "an equal call was made in the same second: that one was carried out, or will be; to make another, sign it in another second")
		default:
			return was, nil
		}
	}
	if s.count >= n.most {
		s.forget(oldest)
	}
	if s.count >= n.most {
		return nil, Errorf(KindRateLimited, "", "more than %d requests in the time that a Timestamp is accepted", n.most)
	}
	if err := allow(); err != nil {
		return nil, err
	}
	if s.bySent[sent] == nil {
		s.bySent[sent] = map[mark]*Outcome{}
	}
	s.bySent[sent][m] = outcome
	s.count++
	return nil, nil //nolint:nilnil // there is no earlier one
}

// sweep forgets what has expired of all callers.
func (n *calls) sweep(oldest int64) {
	n.swept = oldest
	for by, s := range n.callers {
		if s.forget(oldest); s.count == 0 {
			delete(n.callers, by)
		}
	}
}

func (s *seen) forget(oldest int64) {
	for sent, marks := range s.bySent {
		if sent < oldest {
			s.count -= len(marks)
			delete(s.bySent, sent)
		}
	}
}

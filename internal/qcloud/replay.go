package qcloud

import "sync"

// sweepEvery is how often, in seconds, what has expired is forgotten. Whether a
// call is a replay does not depend on it.
const sweepEvery = 10

// nonces remembers the calls of the time in which a Timestamp is accepted.
type nonces struct {
	most int // remembered calls of one SecretId

	mu      sync.Mutex
	swept   int64
	callers map[string]*seen
}

// seen are the calls of one SecretId: by Timestamp, so that a second expires as
// one, the nonces.
type seen struct {
	count  int
	bySent map[int64]map[uint64]struct{}
}

func newNonces(most int) *nonces {
	return &nonces{most: most, callers: map[string]*seen{}}
}

// add remembers a call that was sent at sent (Unix seconds). It fails if the call
// was seen before, if this SecretId has too many that count, or as allow does. It
// asks allow, which must not block, only about calls that are new: repeating what
// another has signed must not use up that other's rate. And it remembers only
// what allow lets pass, so that the same call can be tried again later.
//
// What was sent before oldest is not accepted any more and may be forgotten; a
// clock that is set back makes it acceptable again, and then it is not recognised.
func (n *nonces) add(secretID string, sent int64, nonce uint64, oldest int64, allow func() error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if oldest-n.swept >= sweepEvery || oldest < n.swept {
		n.sweep(oldest)
	}
	s := n.callers[secretID]
	if s == nil {
		s = &seen{bySent: map[int64]map[uint64]struct{}{}}
		n.callers[secretID] = s
	}
	if _, exists := s.bySent[sent][nonce]; exists {
		return Errorf(KindReplay, "Nonce", "was used before with this Timestamp")
	}
	if s.count >= n.most {
		s.forget(oldest)
	}
	if s.count >= n.most {
		return Errorf(KindRateLimited, "", "more than %d requests in the time that a Timestamp is accepted", n.most)
	}
	if err := allow(); err != nil {
		return err
	}
	if s.bySent[sent] == nil {
		s.bySent[sent] = map[uint64]struct{}{}
	}
	s.bySent[sent][nonce] = struct{}{}
	s.count++
	return nil
}

// sweep forgets what has expired of all SecretIds.
func (n *nonces) sweep(oldest int64) {
	n.swept = oldest
	for id, s := range n.callers {
		if s.forget(oldest); s.count == 0 {
			delete(n.callers, id)
		}
	}
}

func (s *seen) forget(oldest int64) {
	for sent, nonces := range s.bySent {
		if sent < oldest {
			s.count -= len(nonces)
			delete(s.bySent, sent)
		}
	}
}

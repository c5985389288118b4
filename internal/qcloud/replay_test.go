package qcloud

import (
	"strconv"
	"sync"
	"testing"
	"time"
)

// verify sends a signed call of testID and returns the kind of the refusal, if any.
func verify(t testing.TB, v *Verifier, timestamp int64, nonce string) (Kind, bool) {
	t.Helper()
	params := common(map[string]string{"Action": "CancelTask", "id": "x", "Timestamp": strconv.FormatInt(timestamp, 10), "Nonce": nonce})
	call, err := Read(V2, signedForm("GET", V2, params))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(call); err != nil {
		return AsError(err).Kind, false
	}
	return 0, true
}

func wantVerified(t *testing.T, v *Verifier, timestamp int64, nonce string) {
	t.Helper()
	if kind, ok := verify(t, v, timestamp, nonce); !ok {
		t.Fatalf("Timestamp %d, Nonce %s: refused as %v", timestamp, nonce, kind)
	}
}

func wantRefused(t *testing.T, v *Verifier, timestamp int64, nonce string, want Kind) {
	t.Helper()
	if kind, ok := verify(t, v, timestamp, nonce); ok || kind != want {
		t.Fatalf("Timestamp %d, Nonce %s: accepted %v, refused as %v, want %v", timestamp, nonce, ok, kind, want)
	}
}

func TestReplay(t *testing.T) {
	v, clock := newTestVerifier(Options{})
	wantVerified(t, v, testTime, "1")
	wantRefused(t, v, testTime, "1", KindReplay)
	wantRefused(t, v, testTime, "01", KindReplay) // the same number
	wantVerified(t, v, testTime, "2")
	wantVerified(t, v, testTime+1, "1")
	wantVerified(t, v, testTime+300, "1")
	wantVerified(t, v, testTime, "18446744073709551615")
	wantVerified(t, v, testTime, "0") // a client that rounds a random number sends it now and then

	clock.SetTime(time.Unix(testTime+300, 0))
	wantRefused(t, v, testTime, "1", KindReplay) // the last second in which it counts
	clock.SetTime(time.Unix(testTime+301, 0))
	wantRefused(t, v, testTime, "1", KindExpired)
	wantRefused(t, v, testTime+300, "1", KindReplay) // still counts, though others were forgotten
	clock.SetTime(time.Unix(testTime+2000, 0))
	wantVerified(t, v, testTime+2000, "1")
	if got := v.seen.callers[pair{"account-of-" + testID, testID}].count; got != 1 {
		t.Errorf("%d calls are remembered, want 1", got)
	}
}

func TestReplayOfAnother(t *testing.T) {
	v, _ := newTestVerifier(Options{})
	wantVerified(t, v, testTime, "1")
	params := common(map[string]string{"Action": "CancelTask", "id": "x", "Nonce": "1", "SecretId": "AKIDother"})
	params["Signature"] = Sign("", "otherkey", StringToSign("GET", testHost, V2.Path(), params))
	if _, failure := answer(t, v, V2, form("GET", V2, params)); failure != "" {
		t.Errorf("refused: %s", failure)
	}
}

// A call with a wrong signature must not use up the Nonce of a good one.
func TestWrongSignatureIsNotRemembered(t *testing.T) {
	v, _ := newTestVerifier(Options{})
	params := common(map[string]string{"Action": "CancelTask", "id": "x", "Nonce": "1", "Signature": "wrong"})
	if _, failure := answer(t, v, V2, form("GET", V2, params)); failure == "" {
		t.Fatal("accepted")
	}
	if len(v.seen.callers) != 0 {
		t.Errorf("remembered: %v", v.seen.callers)
	}
	wantVerified(t, v, testTime, "1")
}

func TestReplayMemoryIsBounded(t *testing.T) {
	v, clock := newTestVerifier(Options{MaxNonces: 3})
	wantVerified(t, v, testTime, "1")
	wantVerified(t, v, testTime+2, "2")
	wantVerified(t, v, testTime+2, "3")
	wantRefused(t, v, testTime, "4", KindRateLimited)
	wantRefused(t, v, testTime, "1", KindReplay) // nothing that counts was forgotten
	// Another caller is not concerned.
	other := pair{"account-of-AKIDother", "AKIDother"}
	if _, err := v.seen.add(other, testTime, markOfNonce(1), nil, testTime-300, func() error { return nil }); err != nil {
		t.Errorf("another SecretId: %v", err)
	}
	// One has expired, so there is room for one.
	clock.SetTime(time.Unix(testTime+301, 0))
	wantVerified(t, v, testTime+301, "5")
	wantRefused(t, v, testTime+301, "6", KindRateLimited)
	// Two more have, and the next sweep is not due.
	clock.SetTime(time.Unix(testTime+303, 0))
	wantVerified(t, v, testTime+303, "6")
	wantVerified(t, v, testTime+303, "7")
	wantRefused(t, v, testTime+303, "8", KindRateLimited)
	// After everything has expired nothing is kept, of idle callers either.
	clock.SetTime(time.Unix(testTime+1000, 0))
	wantVerified(t, v, testTime+1000, "7")
	if len(v.seen.callers) != 1 || v.seen.callers[pair{"account-of-" + testID, testID}].count != 1 {
		t.Errorf("remembered: %v", v.seen.callers)
	}
}

// Of many equal calls at once exactly one is accepted.
func TestReplayConcurrently(t *testing.T) {
	v, _ := newTestVerifier(Options{})
	const callers = 32
	results := make(chan bool, callers)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			<-start
			_, ok := verify(t, v, testTime, "1")
			results <- ok
		})
	}
	close(start)
	wg.Wait()
	close(results)
	accepted := 0
	for ok := range results {
		if ok {
			accepted++
		}
	}
	if accepted != 1 {
		t.Errorf("%d calls were accepted, want 1", accepted)
	}
}

type limiter struct{ left int }

func (l *limiter) Allow(string) bool { l.left--; return l.left >= 0 }

func TestLimiter(t *testing.T) {
	l := &limiter{left: 1}
	v, _ := newTestVerifier(Options{Limiter: l})
	params := common(map[string]string{"Action": "CancelTask", "id": "x", "Signature": "wrong"})
	if _, failure := answer(t, v, V2, form("GET", V2, params)); failure == "" {
		t.Fatal("accepted")
	}
	if l.left != 1 {
		t.Error("a wrong signature used up the rate")
	}
	wantVerified(t, v, testTime, "1")
	wantRefused(t, v, testTime, "1", KindReplay)
	if l.left != 0 {
		t.Error("a replay used up the rate")
	}
	wantRefused(t, v, testTime, "2", KindRateLimited)
	l.left = 1
	wantVerified(t, v, testTime, "2") // what was refused for its rate can be sent again
	_, failure := answer(t, v, V3, signedJSON(t, "DescribeTask", `{"Id":"x"}`))
	wantAnswer(t, failure, failureV3JSON("RequestLimitExceeded", "slow down"))
}

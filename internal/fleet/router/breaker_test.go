package router

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"

	"batchtask.dev/operator/internal/fleet"
)

// Who tries whether a server is back may take long, or wait for a place that its namespace
// does not get. Others wait only until somebody has found out that the server answers.
func TestWhoTriesHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probed atomic.Pointer[error]
		b := &breaker{ctx: t.Context(), clock: clock.RealClock{}, probe: func(context.Context) error {
			if away := probed.Load(); away != nil {
				return *away
			}
			return nil
		}}
		away := errors.New("away")
		probed.Store(&away)
		_, c, err := b.begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b.end(c, &fleet.UnavailableError{Reason: "away"}, false)
		time.Sleep(breakFirst)
		inside, slow, err := b.begin(t.Context())
		if err != nil {
			t.Fatalf("nobody tries: %v", err)
		}
		refused := func(when string, want bool) {
			t.Helper()
			_, c, err := b.begin(t.Context())
			if (err != nil) != want {
				t.Errorf("%s: error %v", when, err)
			}
			if err == nil {
				b.end(c, nil, false)
			}
		}
		refused("while one tries", true)
		time.Sleep(suspectAfter)
		synctest.Wait()
		if inside.Err() == nil {
			t.Error("who waits for a server that is away is left waiting")
		}
		b.end(slow, nil, false)

		time.Sleep(breakMost)
		probed.Store(nil)
		if _, slow, err = b.begin(t.Context()); err != nil {
			t.Fatalf("nobody tries: %v", err)
		}
		refused("while another tries", true)
		time.Sleep(suspectAfter)
		synctest.Wait()
		refused("when the server has answered somebody", false)
		b.end(slow, nil, false)
		refused("after that", false)
	})
}

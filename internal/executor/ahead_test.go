package executor

import (
	"bytes"
	"testing"
	"time"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// While nobody acknowledges, no more messages are sent than the resend limit, and the
// shadows of no more than two pages are updated beyond these. A run that goes on later
// sends each device its delta all the same.
func TestShadowsAreUpdatedAhead(t *testing.T) {
	const n, window = 20_000, 64
	bubble(t, n, window, func(t *testing.T, r *rig) {
		r.broker.result = func(string) error { return errHold }
		task := shadowTask("a")
		r.Ensure(task)
		pass(time.Minute)
		r.fleet.mu.Lock()
		ahead := len(r.fleet.applied)
		r.fleet.mu.Unlock()
		if messages, _ := r.broker.total(); messages == 0 || messages > window {
			t.Errorf("%d messages were sent without an acknowledgement, want some, and no more than %d", messages, window)
		}
		if ahead <= window || ahead > 2*largestPage {
			t.Errorf("%d shadows were updated, want more than %d and no more than %d", ahead, window, 2*largestPage)
		}

		r.Forget(task.NamespacedName)
		r.broker.abandonHeld()
		r.broker.result = nil
		r.Ensure(task)
		if got := r.ended(t, task); got.Matched != n || got.Succeeded != n {
			t.Errorf("progress: %+v", got)
		}
		if messages, topics := r.broker.total(); topics != n || messages > n+window {
			t.Errorf("%d messages on %d topics, want at most %d on %d", messages, topics, n+window, n)
		}
	})
}

// While the store is away, nothing is sent and the trouble is told.
func TestShadowStoreIsAway(t *testing.T) {
	bubble(t, 3000, 64, func(t *testing.T, r *rig) {
		r.fleet.applyFaults = 20
		task := shadowTask("a")
		r.Ensure(task)
		pass(10 * time.Second)
		if p, _ := r.Progress(task.NamespacedName, task.UID); p.Trouble != "updating shadows: the store is away" {
			t.Errorf("trouble %q", p.Trouble)
		}
		if messages, _ := r.broker.total(); messages != 0 {
			t.Errorf("%d messages were sent to devices whose shadows are not updated", messages)
		}
		if got := r.ended(t, task); got.Succeeded != 3000 || got.Trouble != "" {
			t.Errorf("progress: %+v", got)
		}
		for n, times := range r.fleet.applied {
			if times != 1 {
				t.Errorf("%s was updated %d times", n, times)
			}
		}
	})
}

// Where every update was made and the deadline comes, what was not sent has failed.
func TestDeadlineOfWhatIsReadAhead(t *testing.T) {
	bubble(t, 2000, 64, func(t *testing.T, r *rig) {
		r.broker.result = func(string) error { return errHold }
		task := shadowTask("a")
		task.Deadline = time.Now().Add(time.Minute)
		r.Ensure(task)
		got := r.ended(t, task)
		if got.Outcome != OutcomeExpired || got.Matched != 2000 || got.Failed != 2000 || got.Failures[0].Reason != v1alpha1.ReasonDeadlineExceeded {
			t.Errorf("progress: %+v", got)
		}
	})
}

// Pages are as large as the store takes a twentieth of a second for and four megabytes of
// deltas have room, within bounds.
func TestPagesFollowTheStore(t *testing.T) {
	for name, c := range map[string]struct {
		takes time.Duration // over each device
		delta int           // bytes of each
		want  int           // the size of pages in the end
	}{
		"fast":         {time.Microsecond, 100, largestPage},
		"in between":   {100 * time.Microsecond, 100, 500},
		"slow":         {10 * time.Millisecond, 100, leastPage},
		"large deltas": {time.Microsecond, 16 << 10, 256},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 10_000, 64, func(t *testing.T, r *rig) {
				delta := bytes.Repeat([]byte(" "), c.delta)
				r.fleet.apply = func(string) fleet.DesiredResult { return fleet.DesiredResult{Delta: delta} }
				r.fleet.applyTakes = c.takes
				task := shadowTask("a")
				r.Ensure(task)
				if got := r.ended(t, task); got.Succeeded != 10_000 {
					t.Errorf("progress: %+v", got)
				}
				calls := r.fleet.calls
				if calls[0] != leastPage || calls[len(calls)-2] != c.want {
					t.Errorf("the first page had %d devices, the last full one %d; want %d and %d", calls[0], calls[len(calls)-2], leastPage, c.want)
				}
			})
		})
	}
}

// A page is paid for until all of it has its places in the window, however long the broker
// lets it wait for them.
func TestPageIsPaidWhileItWaits(t *testing.T) {
	const devices, delta = leastPage, 32 << 10
	bubble(t, devices, 8, func(t *testing.T, r *rig) {
		r.opts.ResendLimit = devices
		r.broker.result = func(string) error { return errHold }
		r.fleet.apply = func(string) fleet.DesiredResult { return fleet.DesiredResult{Delta: make([]byte, delta)} }
		task := shadowTask("a")
		r.Ensure(task)
		pass(time.Second)
		used := func() int {
			r.pages.mu.Lock()
			defer r.pages.mu.Unlock()
			return r.pages.used
		}
		if n, _ := r.broker.total(); n == 0 || n > 8 || used() < devices*delta {
			t.Errorf("%d messages are on their way, and %d bytes are paid", n, used())
		}
		r.Forget(task.NamespacedName)
		pass(time.Second)
		if used() != 0 {
			t.Errorf("%d bytes are paid in the end", used())
		}
		r.broker.abandonHeld()
	})
}

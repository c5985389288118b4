package executor

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/clock"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/lease"
)

// anyLock is a lock that takes everything.
type anyLock struct{ resourcelock.Interface }

func (anyLock) Update(context.Context, resourcelock.LeaderElectionRecord) error { return nil }

// electedNow returns a Lease of 15 s that is in doubt after 5 s, and what renews it.
func electedNow(t *testing.T) (held *lease.Lease, renew func()) {
	t.Helper()
	held = lease.Elected("host", 10*time.Second, clock.RealClock{})
	lock := held.Watch(anyLock{})
	won := metav1.Now()
	renew = func() {
		_ = lock.Update(t.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: "host", LeaseDurationSeconds: 15, AcquireTime: won})
	}
	renew()
	return held, renew
}

func (d *devices) written() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.applied)
}

// A run whose process is in doubt takes nothing in. What is on its way lands and counts,
// and a renewal lets the run go on, with each device served once.
func TestDoubt(t *testing.T) {
	for name, task := range map[string]Task{"messages": publishTask("a", ".*"), "shadows": shadowTask("a")} {
		t.Run(name, func(t *testing.T) {
			d := newDevices(3000)
			bubbleOf(t, d, 20, func(t *testing.T, r *rig) {
				held, renew := electedNow(t)
				r.broker.pace = 10 * time.Millisecond // 30 s for all of them
				task.Hold, _ = held.Hold()
				task.Deadline = time.Now().Add(time.Hour)
				r.Ensure(task)
				pass(5 * time.Second)
				sent, _ := r.broker.total()
				written := d.written()
				pass(9 * time.Second)
				now, _ := r.broker.total()
				p, _ := r.Progress(task.NamespacedName, task.UID)
				if sent == 0 || now > sent+1 || p.Succeeded != int64(now) || p.Trouble == "" {
					t.Errorf("after %d messages were sent, in doubt: %d, progress %+v", sent, now, p)
				}
				if now := d.written(); now != written {
					t.Errorf("%d shadows were written, in doubt %d", written, now)
				}
				stop := make(chan struct{})
				go func() {
					for {
						renew()
						select {
						case <-time.After(2 * time.Second):
						case <-stop:
							return
						}
					}
				}()
				got := r.ended(t, task)
				close(stop)
				if messages, _ := r.broker.total(); got.Succeeded != 3000 || messages != 3000 {
					t.Errorf("%d messages, progress %+v", messages, got)
				}
			})
		})
	}
}

// A process that stood still for longer than its Lease is good sends nothing any more when
// it wakes up, also not again, and its run is dropped. The term may not begin again for
// it, though the process wins the Lease back.
func TestTermIsOver(t *testing.T) {
	bubble(t, 1000, 50, func(t *testing.T, r *rig) {
		held, renew := electedNow(t)
		r.broker.result = func(string) error { return errHold }
		task := publishTask("a", ".*")
		task.Hold, _ = held.Hold()
		r.Ensure(task)
		synctest.Wait()
		sent, _ := r.broker.total()
		r.broker.mu.Lock()
		onTheWay := r.broker.held[0]
		r.broker.mu.Unlock()
		pass(15*time.Second - time.Nanosecond)
		if !onTheWay.Live() {
			t.Error("a message is given up while its term goes on")
		}
		pass(time.Nanosecond)
		if onTheWay.Live() {
			t.Error("a message may be sent again after the term")
		}
		renew()
		pass(2 * time.Second)
		if _, ok := r.Progress(task.NamespacedName, task.UID); ok || r.Working(task.UID) {
			t.Error("the run goes on")
		}
		if now, _ := r.broker.total(); now != sent || sent == 0 || sent > 50 {
			t.Errorf("%d messages, and %d before the term was over; want the same, some, and at most the window", now, sent)
		}
		r.broker.abandonHeld()
		// It begins anew, under the right that there is now.
		task.Hold, _ = held.Hold()
		r.broker.mu.Lock()
		r.broker.result = nil
		r.broker.mu.Unlock()
		r.Ensure(task)
		renew()
		if got := r.ended(t, task); got.Succeeded != 1000 {
			t.Errorf("progress %+v", got)
		}
	})
}

// A run that was taken over before its right ended does not begin.
func TestRunOfATermThatIsOver(t *testing.T) {
	bubble(t, 10, 5, func(t *testing.T, r *rig) {
		held, renew := electedNow(t)
		task := publishTask("a", ".*")
		task.Hold, _ = held.Hold()
		pass(20 * time.Second)
		renew()
		r.Ensure(task)
		pass(2 * time.Second)
		if sent, _ := r.broker.total(); sent != 0 || r.Working(task.UID) {
			t.Errorf("%d messages", sent)
		}
	})
}

// Somebody else has taken over the results: the run ends itself.
func TestForeignResults(t *testing.T) {
	d := keeping(1000)
	bubbleOf(t, d, 50, func(t *testing.T, r *rig) {
		r.broker.pace = 10 * time.Millisecond
		task := publishTask("a", ".*")
		r.Ensure(task)
		pass(time.Second)
		before, _ := r.Progress(task.NamespacedName, task.UID)
		if _, err := d.results.Take(t.Context(), fleet.ResultsRun{Epoch: "another#1"}, task.Product, "", 0); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		sent, _ := r.broker.total()
		pass(time.Minute)
		now, _ := r.broker.total()
		recorded := d.results.counts()[""]
		if _, ok := r.Progress(task.NamespacedName, task.UID); ok || now != sent || before.Succeeded == 0 || recorded > int(before.Succeeded)+50 {
			t.Errorf("the run goes on: %d messages, %d before; %d are recorded, %d were", now, sent, recorded, before.Succeeded)
		}
	})
}

// The records end before those that were lost, and go on behind them. The status counts up
// to its cursor, and what follows it without a gap counts too; the rest is served again.
func TestResumeCountsWithoutTheGap(t *testing.T) {
	d := keeping(1500)
	bubbleOf(t, d, 100, func(t *testing.T, r *rig) {
		task := publishTask("a", ".*")
		task.After, task.Matched, task.Succeeded, task.Failed = name(499), 1500, 490, 10
		d.results.gap = name(699)
		for i := range uint64(1300) {
			d.results.results[name(i)] = ""
		}
		d.results.most = name(1299)
		r.Ensure(task)
		got := r.ended(t, task)
		if got.Succeeded != 1490 || got.Failed != 10 || got.Matched != 1500 {
			t.Errorf("progress %+v", got)
		}
		if sent, devices := r.broker.total(); sent != 800 || devices != 800 {
			t.Errorf("%d messages to %d devices, want one to each of the 800 behind the gap", sent, devices)
		}
	})
}

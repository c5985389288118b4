package executor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/types"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/mqtt"
	"batchtask.dev/operator/internal/shadow"
)

type typesUID = types.UID

func mustDesired(text string) shadow.Object {
	desired, err := shadow.ParseDesired(text)
	if err != nil {
		panic(err)
	}
	return desired
}

// rig is an executor between a fleet and a broker that are fakes.
type rig struct {
	*Executor
	fleet  *devices
	broker *broker
	news   chan types.NamespacedName

	saves chan types.NamespacedName
	mu    sync.Mutex
	saved map[types.NamespacedName]Progress // the checkpoints that were written
}

// bubble runs a test in a bubble whose clock advances when everything waits.
func bubble(t *testing.T, n, window int, test func(t *testing.T, r *rig)) {
	t.Helper()
	bubbleOf(t, newDevices(n), window, test)
}

func bubbleOf(t *testing.T, d *devices, window int, test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t.Context(), d, newBroker(), window)
		go r.broker.serve()
		go r.reconcile()
		test(t, r)
		r.Close()
		close(r.broker.closed)
		synctest.Wait()
	})
}

func newRig(ctx context.Context, d *devices, b *broker, window int) *rig {
	r := &rig{
		fleet: d, broker: b, news: make(chan types.NamespacedName, 10_000),
		saves: make(chan types.NamespacedName, 10_000), saved: map[types.NamespacedName]Progress{},
	}
	notify := func(n types.NamespacedName) {
		r.news <- n
		r.saves <- n
	}
	var store fleet.Store = d
	if d.results != nil {
		store = keeper{d}
	}
	r.Executor = New(ctx, store, b, notify, Options{Window: window, Log: logr.Discard()})
	return r
}

// reconcile writes checkpoints, as the reconciler does; each write takes a while.
func (r *rig) reconcile() {
	for {
		select {
		case n := <-r.saves:
			r.Executor.mu.Lock()
			run := r.runs[n]
			r.Executor.mu.Unlock()
			if run == nil {
				continue
			}
			p := run.account.progress()
			select {
			case <-time.After(2 * time.Millisecond):
			case <-r.broker.closed:
				return
			}
			r.mu.Lock()
			r.saved[n] = p
			r.mu.Unlock()
			r.Saved(n, run.task.UID, p.Mark)
		case <-r.broker.closed:
			return
		}
	}
}

// lastSaved returns the last checkpoint that was written.
func (r *rig) lastSaved(n types.NamespacedName) Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.saved[n]
}

var ignoreMark = cmpopts.IgnoreFields(Progress{}, "Mark")

// pass lets the bubble's time pass, which takes none.
func pass(d time.Duration) { <-time.After(d) }

// ended waits until the task's run has an outcome.
func (r *rig) ended(t *testing.T, task Task) Progress {
	t.Helper()
	for {
		p, ok := r.Progress(task.NamespacedName, task.UID)
		if !ok {
			t.Fatal("the task has no run")
		}
		if p.Outcome != OutcomeNone {
			return p
		}
		select {
		case <-r.news:
		case <-time.After(48 * time.Hour):
			t.Fatalf("the run does not end: %+v", p)
		}
	}
}

func TestEveryDeviceIsServedOnce(t *testing.T) {
	bubble(t, 5000, 64, func(t *testing.T, r *rig) {
		task := publishTask("a", ".*")
		r.Ensure(task)
		r.Ensure(task) // a second call starts no second run
		got := r.ended(t, task)
		want := Progress{Cursor: name(4999), Matched: 5000, Succeeded: 5000, Outcome: OutcomeServed}
		if diff := cmp.Diff(want, got, ignoreMark); diff != "" {
			t.Errorf("progress (-want +got):\n%s", diff)
		}
		if messages, topics := r.broker.total(); messages != 5000 || topics != 5000 {
			t.Errorf("%d messages on %d topics, want 5000 on 5000", messages, topics)
		}
	})
}

func TestNoDeviceMatches(t *testing.T) {
	bubble(t, 100, 64, func(t *testing.T, r *rig) {
		task := publishTask("a", "^nothing$")
		r.Ensure(task)
		if diff := cmp.Diff(Progress{Outcome: OutcomeServed}, r.ended(t, task), ignoreMark); diff != "" {
			t.Errorf("progress (-want +got):\n%s", diff)
		}
	})
}

// A manager that dies may be restarted from any checkpoint it has told of: the
// counts are exact in the end, every device is served, and no more than one window
// of them twice.
func TestRestartFromAnyCheckpoint(t *testing.T) {
	const n, window = 3000, 50
	for _, crashAt := range []time.Duration{0, time.Millisecond, 1500 * time.Millisecond, 2100 * time.Millisecond, 7 * time.Second} {
		t.Run(crashAt.String(), func(t *testing.T) {
			bubble(t, n, window, func(t *testing.T, r *rig) {
				r.broker.pace = 3 * time.Millisecond
				r.broker.result = func(topic string) error {
					if topic == topicOf(7) || topic == topicOf(2500) {
						return fmt.Errorf("%w: alone", mqtt.ErrRejected)
					}
					return nil
				}
				task := publishTask("a", ".*")
				r.Ensure(task)
				pass(crashAt)
				r.Forget(task.NamespacedName) // no goodbye: what is not saved is lost to the count
				saved := r.lastSaved(task.NamespacedName)

				task.After, task.Matched = saved.Cursor, saved.Matched
				task.Succeeded, task.Failed, task.Failures = saved.Succeeded, saved.Failed, saved.Failures
				r.Ensure(task)
				got := r.ended(t, task)

				want := Progress{
					Cursor: name(n - 1), Matched: n, Succeeded: n - 2, Failed: 2, Outcome: OutcomeServed,
					Failures: []v1alpha1.DeviceFailure{rejection(7), rejection(2500)},
				}
				if diff := cmp.Diff(want, got, ignoreMark); diff != "" {
					t.Errorf("progress (-want +got):\n%s", diff)
				}
				messages, topics := r.broker.total()
				if topics != n || messages > n+window {
					t.Errorf("%d messages on %d topics, want at most %d on %d", messages, topics, n+window, n)
				}
			})
		})
	}
}

func rejection(seq uint64) v1alpha1.DeviceFailure {
	return v1alpha1.DeviceFailure{
		DeviceName: name(seq), Reason: v1alpha1.ReasonPublishRejected,
		Message: fmt.Errorf("%w: alone", mqtt.ErrRejected).Error(),
	}
}

// A broker that takes everything and acknowledges nothing: no device succeeds, and
// at the deadline every one has failed, reached or not.
func TestDeadlineWithoutAcknowledgements(t *testing.T) {
	bubble(t, 5000, 100, func(t *testing.T, r *rig) {
		r.broker.result = func(string) error { return errHold }
		task := publishTask("a", ".*")
		task.Deadline = time.Now().Add(30 * time.Second)
		r.Ensure(task)
		pass(29 * time.Second)
		if p, _ := r.Progress(task.NamespacedName, task.UID); p.Succeeded != 0 || p.Failed != 0 || p.Outcome != OutcomeNone || p.Matched != 5000 {
			t.Errorf("before the deadline: %+v", p)
		}
		got := r.ended(t, task)
		if got.Succeeded != 0 || got.Failed != 5000 || got.Matched != 5000 || got.Outcome != OutcomeExpired || len(got.Failures) != MaxFailures {
			t.Errorf("after the deadline: %+v", got)
		}
		for i, f := range got.Failures {
			if f.DeviceName != name(uint64(i)) || f.Reason != v1alpha1.ReasonDeadlineExceeded {
				t.Errorf("failure %d is %+v", i, f)
			}
		}
		r.broker.abandonHeld()
		if p, _ := r.Progress(task.NamespacedName, task.UID); p.Succeeded != 0 || p.Failed != 5000 {
			t.Errorf("results that came late were counted: %+v", p)
		}
	})
}

func TestDeadlineCountsWhatWasServed(t *testing.T) {
	bubble(t, 1000, 10, func(t *testing.T, r *rig) {
		r.broker.pace = 100 * time.Millisecond
		task := publishTask("a", ".*")
		task.Deadline = time.Now().Add(20*time.Second + 50*time.Millisecond)
		r.Ensure(task)
		got := r.ended(t, task)
		if got.Succeeded < 195 || got.Succeeded > 201 || got.Succeeded+got.Failed != 1000 || got.Matched != 1000 || got.Outcome != OutcomeExpired {
			t.Errorf("progress: %+v", got)
		}
	})
}

func TestResumedAfterTheDeadline(t *testing.T) {
	bubble(t, 1000, 10, func(t *testing.T, r *rig) {
		task := publishTask("a", ".*")
		task.Deadline = time.Now().Add(-time.Minute)
		task.After, task.Matched, task.Succeeded = name(399), 1000, 400
		r.Ensure(task)
		got := r.ended(t, task)
		if got.Succeeded != 400 || got.Failed != 600 || got.Outcome != OutcomeExpired {
			t.Errorf("progress: %+v", got)
		}
		if messages, _ := r.broker.total(); messages != 0 {
			t.Errorf("%d messages were sent after the deadline", messages)
		}
	})
}

func TestCancelCountsEveryResult(t *testing.T) {
	bubble(t, 1000, 20, func(t *testing.T, r *rig) {
		r.broker.pace = 10 * time.Millisecond
		r.broker.result = func(topic string) error {
			if topic == topicOf(100) {
				return errHold // the watermark stays below it
			}
			return nil
		}
		task := publishTask("a", ".*")
		r.Ensure(task)
		pass(1105 * time.Millisecond)
		r.Cancel(task.NamespacedName, task.UID)
		got := r.ended(t, task)
		messages, _ := r.broker.total()
		if got.Outcome != OutcomeCancelled || got.Succeeded != int64(messages-1) || got.Failed != 0 || got.Matched != 1000 {
			t.Errorf("%d messages, progress: %+v", messages, got)
		}
		r.broker.abandonHeld()
	})
}

func TestSuspendAndGoOn(t *testing.T) {
	bubble(t, 1000, 20, func(t *testing.T, r *rig) {
		r.broker.pace = time.Millisecond
		task := publishTask("a", ".*")
		r.Ensure(task)
		pass(300 * time.Millisecond)
		r.Suspend(task.NamespacedName, task.UID)
		saved := r.ended(t, task)
		if saved.Outcome != OutcomeSuspended || saved.Succeeded < 290 || saved.Succeeded == 1000 {
			t.Fatalf("suspended: %+v", saved)
		}
		r.Forget(task.NamespacedName)
		task.After, task.Matched, task.Succeeded = saved.Cursor, saved.Matched, saved.Succeeded
		r.Ensure(task)
		got := r.ended(t, task)
		if messages, _ := r.broker.total(); got.Succeeded != 1000 || messages != 1000 {
			t.Errorf("%d messages for 1000 devices, progress: %+v", messages, got)
		}
	})
}

func TestDrainLeavesNothingToBeSentTwice(t *testing.T) {
	bubble(t, 1000, 20, func(t *testing.T, r *rig) {
		r.broker.pace = time.Millisecond
		task := publishTask("a", ".*")
		r.Ensure(task)
		pass(100 * time.Millisecond)
		go func() { // the reconciler
			saved := r.ended(t, task)
			if messages, _ := r.broker.total(); saved.Succeeded != int64(messages) {
				t.Errorf("%d messages were sent, %d are counted", messages, saved.Succeeded)
			}
			r.Forget(task.NamespacedName)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := r.Drain(ctx); err != nil {
			t.Errorf("Drain: %v", err)
		}
		r.Ensure(task)
		if _, ok := r.Progress(task.NamespacedName, task.UID); ok {
			t.Error("a run was started after Drain")
		}
	})
}

func TestShadowResults(t *testing.T) {
	bubble(t, 500, 64, func(t *testing.T, r *rig) {
		tries := map[string]int{}
		r.fleet.apply = func(n string) fleet.DesiredResult {
			tries[n]++
			switch {
			case n == name(10):
				return fleet.DesiredResult{Err: &fleet.DeviceError{Reason: v1alpha1.ReasonShadowTooLarge, Message: "too large"}}
			case n == name(20):
				return fleet.DesiredResult{Err: fleet.ErrDeviceGone}
			case n == name(30):
				return fleet.DesiredResult{} // nothing differs: no delta
			case n == name(40) && tries[n] < 5:
				return fleet.DesiredResult{Err: errors.New("conflict")}
			}
			return fleet.DesiredResult{Delta: []byte("delta")}
		}
		r.fleet.scanFaults = 3
		task := shadowTask("a")
		r.Ensure(task)
		got := r.ended(t, task)
		want := Progress{
			Cursor: name(499), Matched: 499, Succeeded: 498, Failed: 1, Outcome: OutcomeServed,
			Failures: []v1alpha1.DeviceFailure{{DeviceName: name(10), Reason: v1alpha1.ReasonShadowTooLarge, Message: "too large"}},
		}
		if diff := cmp.Diff(want, got, ignoreMark); diff != "" {
			t.Errorf("progress (-want +got):\n%s", diff)
		}
		for seq, want := range map[uint64]int{0: 1, 10: 0, 20: 0, 30: 0, 40: 1, 499: 1} {
			if got := r.broker.count("$shadow/operation/result/P/" + name(seq)); got != want {
				t.Errorf("%s got %d deltas, want %d", name(seq), got, want)
			}
		}
		for n, times := range r.fleet.applied {
			if times != 1 {
				t.Errorf("%s was updated %d times", n, times)
			}
		}
	})
}

// One device whose update fails again and again does not keep others from being
// served, and the trouble is told.
func TestOneStubbornDeviceHoldsUpNobody(t *testing.T) {
	bubble(t, 300, 64, func(t *testing.T, r *rig) {
		r.fleet.apply = func(n string) fleet.DesiredResult {
			if n == name(250) {
				return fleet.DesiredResult{Err: errors.New("forbidden by policy")}
			}
			return fleet.DesiredResult{Delta: []byte("delta")}
		}
		task := shadowTask("a")
		task.Deadline = time.Now().Add(time.Minute)
		r.Ensure(task)
		pass(10 * time.Second)
		if p, _ := r.Progress(task.NamespacedName, task.UID); p.Cursor != name(249) || p.Trouble != "updating shadows: forbidden by policy" {
			t.Errorf("progress: %+v", p)
		}
		if n := r.broker.count("$shadow/operation/result/P/" + name(299)); n != 1 {
			t.Errorf("the last device got %d deltas, want 1", n)
		}
		got := r.ended(t, task)
		if got.Succeeded != 299 || got.Failed != 1 || got.Failures[0].Reason != v1alpha1.ReasonDeadlineExceeded {
			t.Errorf("progress: %+v", got)
		}
	})
}

// Ten small tasks are through before a large one that began earlier is half done,
// at a broker that acknowledges 500 messages a second.
func TestSmallTasksAreNotDelayedByALargeOne(t *testing.T) {
	bubble(t, 5000, 1000, func(t *testing.T, r *rig) {
		r.broker.pace = 2 * time.Millisecond
		large := publishTask("large", ".*")
		r.Ensure(large)
		pass(time.Second)
		var small []Task
		for i := range 10 {
			task := publishTask(fmt.Sprintf("small-%d", i), fmt.Sprintf("d-%04d[0-9]$", i))
			small = append(small, task)
			r.Ensure(task)
		}
		for _, task := range small {
			if got := r.ended(t, task); got.Succeeded != 10 {
				t.Errorf("%s: %+v", task.Name, got)
			}
		}
		if p, _ := r.Progress(large.NamespacedName, large.UID); p.Succeeded >= 2500 {
			t.Errorf("the large task had served %d of 5000 devices when the small ones were done", p.Succeeded)
		}
		if got := r.ended(t, large); got.Succeeded != 5000 {
			t.Errorf("large: %+v", got)
		}
	})
}

func TestAnObjectOfTheSameNameIsAnotherTask(t *testing.T) {
	bubble(t, 100, 10, func(t *testing.T, r *rig) {
		r.broker.pace = time.Second
		old := publishTask("a", ".*")
		r.Ensure(old)
		pass(5 * time.Second)
		young := old
		young.UID = "another"
		r.Ensure(young)
		if _, ok := r.Progress(old.NamespacedName, old.UID); ok || r.Working(old.UID) {
			t.Error("the old object still has a run")
		}
		if got := r.ended(t, young); got.Succeeded != 100 {
			t.Errorf("progress: %+v", got)
		}
	})
}

// A slow task tells of its progress about once a second, and a fast one at each half
// resend limit, so that it need not wait for a checkpoint.
func TestProgressIsToldAboutOnceASecond(t *testing.T) {
	bubble(t, 1000, 250, func(t *testing.T, r *rig) {
		r.broker.pace = 10 * time.Millisecond
		task := publishTask("a", ".*")
		r.Ensure(task)
		pass(5500 * time.Millisecond)
		if n := len(r.news); n < 5 || n > 6 {
			t.Errorf("told %d times in 5.5 s, want 5 or 6", n)
		}
	})
}

// However fast the broker is, a run is never further ahead of its last saved
// checkpoint than the resend limit, and waits where none is saved.
func TestNoCheckpointNoProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t.Context(), newDevices(1000), newBroker(), 100) // nobody writes checkpoints
		go r.broker.serve()
		task := publishTask("a", ".*")
		r.Ensure(task)
		pass(time.Minute)
		if messages, _ := r.broker.total(); messages != 100 {
			t.Errorf("%d messages were sent without a checkpoint, the resend limit is 100", messages)
		}
		p, _ := r.Progress(task.NamespacedName, task.UID)
		r.Saved(task.NamespacedName, task.UID, p.Mark)
		pass(time.Minute)
		if messages, _ := r.broker.total(); messages != 200 {
			t.Errorf("%d messages were sent after one checkpoint, want 200", messages)
		}
		r.Close()
		close(r.broker.closed)
		synctest.Wait()
	})
}

func TestDevicesThatComeAndGo(t *testing.T) {
	bubble(t, 5000, 50, func(t *testing.T, r *rig) {
		r.broker.pace = time.Millisecond
		task := publishTask("a", ".*")
		r.Ensure(task)
		pass(500 * time.Millisecond)
		r.fleet.mu.Lock()
		r.fleet.names = slices.Insert(r.fleet.names, 1, "d-00000-new")                                                   // behind the cursor: not served
		r.fleet.names = append(r.fleet.names, "d-99999")                                                                 // ahead of it: served
		r.fleet.names = slices.DeleteFunc(r.fleet.names, func(n string) bool { return n == name(1) || n == name(4999) }) // served; not reached
		r.fleet.mu.Unlock()
		got := r.ended(t, task)
		if got.Matched != 5000 || got.Succeeded != 5000 || got.Cursor != "d-99999" {
			t.Errorf("progress: %+v", got)
		}
	})
}

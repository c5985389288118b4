package executor

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/mqtt"
)

// keeper is a fleet that keeps results.
type keeper struct{ *devices }

var _ fleet.ResultsKeeper = keeper{}

func (k keeper) ResultsOf(context.Context, fleet.Product) (fleet.Results, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.noProduct {
		return nil, fleet.ErrNoProduct
	}
	return k.results, k.results.fault()
}

// resultBook keeps the results of one task in memory. It fails now and then.
type resultBook struct {
	fleet.Results // the rest, which the executor does not use

	mu      sync.Mutex
	results map[string]string // by device: "", or the reason of the failure
	most    string            // the greatest name of any range
	faults  int               // how many of the next calls fail
	late    time.Duration     // how long a call takes
	epoch   string            // of the run that has them
	gap     string            // what was recorded behind it does not follow without a gap
	after   int               // how many records succeed before none does; 0 for all
}

func (r *resultBook) fault() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.faults > 0 {
		r.faults--
		return errors.New("the database is away")
	}
	return nil
}

func (r *resultBook) Record(_ context.Context, _ string, _ fleet.Product, part fleet.ResultRange) error {
	<-time.After(r.late)
	if err := r.fault(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if part.Epoch != r.epoch {
		return fleet.ErrForeignEpoch
	}
	if r.after > 0 {
		if r.after--; r.after == 0 {
			r.after = 1
			return errors.New("the database is gone")
		}
	}
	r.remove(part.After, part.Upto)
	for _, name := range part.Succeeded {
		r.results[name] = ""
	}
	for _, f := range part.Failed {
		r.results[f.Name] = f.Reason
	}
	r.most = max(r.most, part.Upto)
	return nil
}

func (r *resultBook) Take(_ context.Context, run fleet.ResultsRun, _ fleet.Product, after string, failures int) (fleet.ResultTotals, error) {
	if err := r.fault(); err != nil {
		return fleet.ResultTotals{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch = run.Epoch
	totals := fleet.ResultTotals{Upto: max(after, r.most)}
	if r.gap != "" {
		totals.Upto = r.gap
	}
	for _, name := range slices.Sorted(maps.Keys(r.results)) {
		if name <= after || name > totals.Upto {
			continue
		}
		reason := r.results[name]
		if reason == "" {
			totals.Succeeded++
			continue
		}
		if totals.Failed++; len(totals.FirstFailed) < failures {
			totals.FirstFailed = append(totals.FirstFailed, fleet.Failure{Name: name, Reason: reason})
		}
	}
	return totals, nil
}

func (r *resultBook) remove(after, upto string) {
	maps.DeleteFunc(r.results, func(name, _ string) bool { return name > after && name <= upto })
}

func (r *resultBook) upto() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.most
}

// counts returns how many have succeeded, and how many failed for each reason.
func (r *resultBook) counts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := map[string]int{}
	for _, reason := range r.results {
		counts[reason]++
	}
	return counts
}

func keeping(n int) *devices {
	d := newDevices(n)
	d.results = &resultBook{results: map[string]string{}}
	return d
}

// Every device has its result, and none counts before that is recorded.
func TestResultsAreRecorded(t *testing.T) {
	d := keeping(3000)
	d.results.late, d.results.faults = 3*time.Millisecond, 2
	bubbleOf(t, d, 64, func(t *testing.T, r *rig) {
		task := publishTask("a", ".*")
		r.broker.result = func(topic string) error {
			if topic == topicOf(7) || topic == topicOf(2999) {
				return mqtt.ErrRejected
			}
			return nil
		}
		r.Ensure(task)
		away := false // the database has been, in the midst of it
		for ended := false; !ended; {
			p, ok := r.Progress(task.NamespacedName, task.UID)
			if !ok {
				t.Fatal("the task has no run")
			}
			if recorded := d.results.upto(); p.Cursor > recorded {
				t.Fatalf("devices count up to %q, and results are recorded up to %q", p.Cursor, recorded)
			}
			if p.Succeeded >= 1000 && !away {
				away = true // once: again and again would be for ever
				d.results.mu.Lock()
				d.results.faults = 3
				d.results.mu.Unlock()
			}
			if ended = p.Outcome != OutcomeNone; !ended {
				pass(time.Millisecond)
			}
		}
		got, _ := r.Progress(task.NamespacedName, task.UID)
		if got.Succeeded != 2998 || got.Failed != 2 || got.Outcome != OutcomeServed {
			t.Errorf("progress %+v", got)
		}
		if diff := cmp.Diff(map[string]int{"": 2998, v1alpha1.ReasonPublishRejected: 2}, d.results.counts()); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
	})
}

// A run that is resumed goes on where the records end, however old the status is:
// each device has one result, and a crash serves no more than a window of devices
// twice though the status is written only once a second.
func TestResultsAfterACrash(t *testing.T) {
	const devices, window = 1500, 32
	d := keeping(devices)
	d.results.late = time.Millisecond
	var saved Progress
	crashes, messages := 0, 0
	task := publishTask("a", ".*")
	for ; ; crashes++ {
		done := false
		bubbleOf(t, d, 32, func(_ *testing.T, r *rig) {
			r.broker.pace = 100 * time.Microsecond
			r.broker.result = func(topic string) error {
				if topic == topicOf(5) {
					return mqtt.ErrRejected
				}
				return nil
			}
			task.After, task.Matched, task.Succeeded, task.Failed, task.Failures = saved.Cursor, saved.Matched, saved.Succeeded, saved.Failed, saved.Failures
			task.Deadline = time.Now().Add(time.Hour)
			r.Ensure(task)
			pass(time.Duration(crashes+1) * 11 * time.Millisecond)
			p, _ := r.Progress(task.NamespacedName, task.UID)
			if done = p.Outcome != OutcomeNone; done {
				saved = p
			} else if last := r.lastSaved(task.NamespacedName); last.Cursor > saved.Cursor {
				saved = last
			}
			n, _ := r.broker.total()
			messages += n
		})
		if done {
			break
		}
	}
	if saved.Succeeded != devices-1 || saved.Failed != 1 || saved.Matched != devices || len(saved.Failures) != 1 {
		t.Errorf("progress %+v", saved)
	}
	if diff := cmp.Diff(map[string]int{"": devices - 1, v1alpha1.ReasonPublishRejected: 1}, d.results.counts()); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if most := devices + crashes*window; crashes < 3 || messages > most {
		t.Errorf("%d messages after %d crashes, want at most %d, after some", messages, crashes, most)
	}
}

// Devices that the deadline has left over, and those that no page had reached, each
// have a result that says so.
func TestResultsAtTheDeadline(t *testing.T) {
	d := keeping(12_000) // more than two pages are left over
	bubbleOf(t, d, 100, func(t *testing.T, r *rig) {
		r.broker.result = func(topic string) error {
			for seq := range uint64(40) {
				if topic == topicOf(seq) {
					return nil
				}
			}
			return errHold
		}
		task := publishTask("a", ".*")
		task.Deadline = time.Now().Add(time.Minute)
		r.Ensure(task)
		got := r.ended(t, task)
		if got.Succeeded != 40 || got.Failed != 11_960 || got.Matched != 12_000 || got.Outcome != OutcomeExpired || len(got.Failures) != MaxFailures {
			t.Errorf("progress %+v", got)
		}
		if diff := cmp.Diff(map[string]int{"": 40, v1alpha1.ReasonDeadlineExceeded: 11_960}, d.results.counts()); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		r.broker.abandonHeld()
	})
}

// Of a product that is gone nobody can say at the deadline which devices it had. What has
// no result has failed all the same, and the task does not wait for ever.
func TestProductGoneAtTheDeadline(t *testing.T) {
	for kept, d := range map[string]*devices{"results in the status": newDevices(1000), "results in the fleet": keeping(1000)} {
		t.Run(kept, func(t *testing.T) {
			d.noProduct = true
			bubbleOf(t, d, 10, func(t *testing.T, r *rig) {
				task := publishTask("a", ".*")
				task.Deadline = time.Now().Add(-time.Minute)
				task.After, task.Matched, task.Succeeded, task.Failed = name(399), 1000, 390, 10
				r.Ensure(task)
				got := r.ended(t, task)
				if got.Succeeded != 390 || got.Failed != 610 || got.Matched != 1000 || got.Outcome != OutcomeExpired {
					t.Errorf("progress: %+v", got)
				}
			})
		})
	}
}

// A cancelled run records what was served above the watermark too.
func TestResultsOfACancelledTask(t *testing.T) {
	d := keeping(500)
	bubbleOf(t, d, 50, func(t *testing.T, r *rig) {
		r.broker.result = func(topic string) error {
			if topic == topicOf(3) {
				return errHold
			}
			return nil
		}
		task := publishTask("a", ".*")
		r.Ensure(task)
		pass(2 * time.Second)
		r.Cancel(task.NamespacedName, task.UID)
		got := r.ended(t, task)
		if got.Outcome != OutcomeCancelled || got.Succeeded == 0 {
			t.Errorf("progress %+v", got)
		}
		if diff := cmp.Diff(map[string]int{"": int(got.Succeeded)}, d.results.counts()); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		r.broker.abandonHeld()
	})
}

// Devices that were pending when a task was resumed after its deadline have a result each,
// like all others that the deadline has left over.
func TestResultsOfPendingAtTheDeadline(t *testing.T) {
	d := keeping(20)
	bubbleOf(t, d, 10, func(t *testing.T, r *rig) {
		task := publishTask("a", ".*")
		task.Deadline = time.Now().Add(-time.Minute)
		task.After, task.Pending, task.Matched, task.Succeeded = name(9), []string{name(3), name(5)}, 20, 8
		r.Ensure(task)
		got := r.ended(t, task)
		if got.Succeeded != 8 || got.Failed != 12 || got.Matched != 20 || got.Outcome != OutcomeExpired {
			t.Errorf("progress %+v", got)
		}
		if diff := cmp.Diff(map[string]int{v1alpha1.ReasonDeadlineExceeded: 12}, d.results.counts()); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
	})
}

// A task that is cancelled while its run takes it over counts what is recorded, as far as a
// database tells that in time.
func TestCancelBeforeTheRecordsAreRead(t *testing.T) {
	for kept, c := range map[string]struct {
		faults    int
		succeeded int64
		lacking   bool
	}{"slow": {3, 50, false}, "away": {1000, 10, true}} {
		t.Run(kept, func(t *testing.T) {
			d := keeping(100)
			for i := range uint64(50) {
				d.results.results[name(i)] = ""
			}
			d.results.most, d.results.faults = name(49), c.faults
			bubbleOf(t, d, 10, func(t *testing.T, r *rig) {
				task := publishTask("a", ".*")
				task.After, task.Matched, task.Succeeded = name(9), 100, 10
				r.Ensure(task)
				r.Cancel(task.NamespacedName, task.UID)
				got := r.ended(t, task)
				if got.Outcome != OutcomeCancelled || got.Succeeded != c.succeeded || got.Failed != 0 || (got.Lacking != "") != c.lacking {
					t.Errorf("progress %+v", got)
				}
				if n, _ := r.broker.total(); n != 0 {
					t.Errorf("%d messages were sent", n)
				}
			})
		})
	}
}

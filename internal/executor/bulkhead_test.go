package executor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/mqtt"
)

// A panic in what works for one task fails that task alone, wherever it is.
func TestAPanicFailsItsTaskAlone(t *testing.T) {
	for where, breakIt := range map[string]func(r *rig, task *Task){
		"reading ahead": func(r *rig, _ *Task) {
			r.fleet.scanned = func(q fleet.Query) {
				if q.Until == name(400) {
					panic("index out of range")
				}
			}
		},
		"updating a shadow": func(r *rig, task *Task) {
			task.Publish, task.Desired = nil, mustDesired(`{"a":1}`)
			r.fleet.apply = func(n string) fleet.DesiredResult {
				if n == name(300) {
					panic("index out of range")
				}
				return fleet.DesiredResult{Delta: []byte(`{}`)}
			}
		},
		"in the goroutine of the broker's connection": func(r *rig, task *Task) {
			task.Publish.Topic = "bad"
			r.broker.result = func(topic string) error {
				if strings.HasSuffix(topic, "/bad") && strings.Contains(topic, name(100)) {
					return &panicking{}
				}
				return nil
			}
		},
	} {
		t.Run(where, func(t *testing.T) {
			d := newDevices(2000)
			bubbleOf(t, d, 64, func(t *testing.T, r *rig) {
				bad, good := publishTask("bad", ".*"), publishTask("good", "")
				bad.Until = name(400)
				breakIt(r, &bad)
				r.Ensure(bad)
				r.Ensure(good)
				got := r.ended(t, bad)
				if got.Outcome != OutcomeBroken || got.Succeeded+got.Failed != got.Matched || got.Matched != 401 || got.Failed == 0 {
					t.Errorf("the task that broke: %+v", got)
				}
				if other := r.ended(t, good); other.Outcome != OutcomeServed || other.Succeeded != 2000 {
					t.Errorf("the other task: %+v", other)
				}
				if n := testutil.ToFloat64(r.metrics.panics); n != 1 {
					t.Errorf("%v panics were counted, want 1", n)
				}
			})
		})
	}
}

// panicking is an error that cannot be compared.
type panicking struct{ error }

func (*panicking) Is(target error) bool {
	if target == errHold { // the fake broker asks that
		return false
	}
	panic("no comparison")
}

// At the deadline a task ends although its fleet cannot be read: what has its
// acknowledgement has succeeded, the rest of what matched has failed.
func TestDeadlineWhileTheFleetIsAway(t *testing.T) {
	for name, fault := range map[string]func(*devices){
		"fails": func(d *devices) { d.away = true },
		"hangs": func(d *devices) { d.hangs = true },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 5000, 64, func(t *testing.T, r *rig) {
				task := publishTask("a", ".*")
				task.Deadline = time.Now().Add(time.Minute)
				r.broker.pace = 10 * time.Millisecond
				r.Ensure(task)
				pass(10*time.Second + time.Millisecond)
				r.fleet.mu.Lock()
				fault(r.fleet)
				r.fleet.mu.Unlock()
				got := r.ended(t, task)
				if late := time.Since(task.Deadline); late > time.Minute {
					t.Errorf("the task ended %s after its deadline", late)
				}
				if got.Outcome != OutcomeExpired || got.Lacking == "" || got.Matched != 5000 || got.Succeeded < 1000 || got.Succeeded+got.Failed != 5000 {
					t.Errorf("progress: %+v", got)
				}
			})
		})
	}
}

// A database that is gone for good holds up neither the deadline nor a cancel: also what
// could not be recorded is counted, and no count falls.
func TestEndingWhileNothingCanBeRecorded(t *testing.T) {
	for name, c := range map[string]struct {
		suspend, cancel, expire bool
		served                  bool // every device before that
		want                    Outcome
	}{
		"deadline":                       {expire: true, want: OutcomeExpired},
		"cancel":                         {cancel: true, want: OutcomeCancelled},
		"deadline of a suspended task":   {suspend: true, expire: true, want: OutcomeExpired},
		"cancel of a suspended task":     {suspend: true, cancel: true, want: OutcomeCancelled},
		"deadline after the last result": {served: true, expire: true, want: OutcomeServed},
	} {
		t.Run(name, func(t *testing.T) {
			const n, window = 1000, 64
			bubbleOf(t, keeping(n), window, func(t *testing.T, r *rig) {
				task := publishTask("a", ".*")
				task.Deadline = time.Now().Add(time.Hour)
				r.broker.pace = 10 * time.Millisecond
				r.fleet.results.mu.Lock()
				r.fleet.results.after = 20 // records
				if c.served {
					task.Until, r.fleet.results.after = deviceName(59), 5
				}
				r.fleet.results.mu.Unlock()
				r.Ensure(task)
				pass(20 * time.Second)
				before, _ := r.Progress(task.NamespacedName, task.UID)
				if before.Outcome != OutcomeNone {
					t.Fatalf("the run has ended: %+v", before)
				}
				asked := time.Now()
				if c.suspend {
					r.Suspend(task.NamespacedName, task.UID)
					pass(10 * time.Minute)
					if p, _ := r.Progress(task.NamespacedName, task.UID); p.Outcome != OutcomeNone {
						t.Fatalf("a suspended run has thrown results away: %+v", p)
					}
					asked = time.Now()
				}
				if c.cancel {
					r.Cancel(task.NamespacedName, task.UID)
				} else {
					asked = task.Deadline
				}
				got := r.ended(t, task)
				if took := time.Since(asked); took > time.Minute {
					t.Errorf("it took %s to end", took)
				}
				messages, _ := r.broker.total()
				if got.Outcome != c.want || got.Lacking == "" || got.Succeeded < before.Succeeded || got.Succeeded > int64(messages) || got.Succeeded == before.Succeeded {
					t.Errorf("%d messages, before %+v, then %+v", messages, before, got)
				}
				if rest := got.Matched - got.Succeeded; c.want == OutcomeExpired && got.Failed != rest || c.want == OutcomeCancelled && got.Failed != 0 {
					t.Errorf("%d devices have failed of a rest of %d", got.Failed, rest)
				}
			})
		})
	}
}

func deviceName(n uint64) string { return name(n) }

// A task whose messages the broker takes and never acknowledges keeps nobody out, and
// sends no more than its limit says.
func TestSilenceHoldsUpNobodyElse(t *testing.T) {
	bubble(t, 5000, 256, func(t *testing.T, r *rig) {
		silent := publishTask("silent", ".*")
		silent.Publish.Topic = "silence"
		r.broker.result = func(topic string) error {
			if strings.HasSuffix(topic, "/silence") {
				return errHold
			}
			return nil
		}
		r.Ensure(silent)
		pass(time.Second)
		began := time.Now()
		for i := range 3 {
			other := publishTask(fmt.Sprint("other-", i), ".*")
			r.Ensure(other)
			if got := r.ended(t, other); got.Succeeded != 5000 {
				t.Errorf("the other task: %+v", got)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Fatalf("the other task took %s", took)
			}
			pass(time.Minute)
			began = time.Now()
		}
		sent := 0
		r.broker.mu.Lock()
		for topic := range r.broker.received {
			if strings.HasSuffix(topic, "/silence") {
				sent++
			}
		}
		r.broker.mu.Unlock()
		if sent > DefaultUnacknowledgedLimit+256/8 {
			t.Errorf("%d messages were sent without one acknowledgement", sent)
		}
		p, _ := r.Progress(silent.NamespacedName, silent.UID)
		if !strings.Contains(p.Trouble, "--unacknowledged-limit") {
			t.Errorf("the task does not say what holds it up: %q", p.Trouble)
		}
		if n := testutil.ToFloat64(r.metrics.unacknowledged); n < DefaultUnacknowledgedLimit {
			t.Errorf("the metric shows %v", n)
		}
		r.broker.result = nil
		r.broker.answerHeld(nil)
		if got := r.ended(t, silent); got.Succeeded != 5000 {
			t.Errorf("once acknowledged: %+v", got)
		}
		if n := testutil.ToFloat64(r.metrics.unacknowledged); n != 0 || r.window.free != 256 {
			t.Errorf("in the end the metric shows %v, and %d places are free", n, r.window.free)
		}
	})
}

// A planned stop beside messages that are never acknowledged sends nothing twice but those.
func TestSuspendBesideSilence(t *testing.T) {
	for _, recorded := range []bool{false, true} {
		for name, c := range map[string]struct{ silent, pending int }{
			"a few":    {3, 3},
			"too many": {150, MaxPending},
		} {
			t.Run(fmt.Sprint(name, recorded), func(t *testing.T) {
				const n, window = 2000, 1000
				d := newDevices(n)
				if recorded {
					d = keeping(n)
				}
				silent := map[string]bool{}
				for i := range c.silent {
					silent[topicOf(uint64(7*i+10))] = true
				}
				bubbleOf(t, d, window, func(t *testing.T, r *rig) {
					r.broker.result = func(topic string) error {
						if silent[topic] {
							return errHold
						}
						return nil
					}
					task := publishTask("a", ".*")
					r.Ensure(task)
					pass(10 * time.Second)
					r.Suspend(task.NamespacedName, task.UID)
					saved := r.ended(t, task)
					if saved.Outcome != OutcomeSuspended || len(saved.Pending) != c.pending {
						t.Fatalf("%d are pending, want %d: %+v", len(saved.Pending), c.pending, saved)
					}
					first, _ := r.broker.total()
					if c.silent <= MaxPending && saved.Succeeded != int64(first-c.silent) {
						t.Errorf("%d are counted of %d messages", saved.Succeeded, first)
					}
					r.Forget(task.NamespacedName)
					r.broker.answerHeld(mqtt.ErrAbandoned)
					r.broker.result = nil

					task.After, task.Matched, task.Pending = saved.Cursor, saved.Matched, saved.Pending
					task.Succeeded, task.Failed = saved.Succeeded, saved.Failed
					r.Ensure(task)
					got := r.ended(t, task)
					if got.Outcome != OutcomeServed || got.Succeeded != n || got.Matched != n || len(got.Pending) != 0 {
						t.Errorf("in the end: %+v", got)
					}
					messages, topics := r.broker.total()
					if topics != n || c.silent <= MaxPending && messages != n+c.silent {
						t.Errorf("%d messages on %d topics", messages, topics)
					}
					if recorded {
						if diff := cmp.Diff(map[string]int{"": n}, d.results.counts()); diff != "" {
							t.Errorf("recorded (-want +got):\n%s", diff)
						}
					}
				})
			})
		}
	}
}

// What comes from outside fits into the status, as its schema counts.
func TestFailuresFitIntoTheStatus(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"short":       {"fine", "fine"},
		"as long":     {strings.Repeat("é", 256), strings.Repeat("é", 256)},
		"too long":    {strings.Repeat("é", 257), strings.Repeat("é", 255) + "…"},
		"not UTF-8":   {strings.Repeat("\xff.", 200), strings.Repeat("\uFFFD.", 127) + "\uFFFD…"},
		"long no end": {strings.Repeat("x", 100_000), strings.Repeat("x", 255) + "…"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 1, 8, func(t *testing.T, r *rig) {
				r.broker.result = func(string) error { return errors.New(c.text) }
				task := publishTask("a", ".*")
				r.Ensure(task)
				got := r.ended(t, task).Failures[0].Message
				if got != c.want || utf8.RuneCountInString(got) > maxMessage {
					t.Errorf("%d characters: %.40q, want %.40q", utf8.RuneCountInString(got), got, c.want)
				}
			})
		})
	}
}

func TestBefore(t *testing.T) {
	names := []string{"-", "--", "0", "00", "A", "A-", "A0", "AZ", "Az", "B", "_", "a", "az", "azz", "b", strings.Repeat("z", 48)}
	for i, n := range names {
		for j, other := range names {
			if j < i && other >= before(n) || j >= i && other <= before(n) {
				t.Errorf("%q stands wrong to what is before %q", other, n)
			}
		}
	}
}

// Pages of any number of runs take no more than the budget, and a little for each; a lone
// run gets the largest.
func TestPageBudget(t *testing.T) {
	const size, most = DefaultPageMemory, largestDelta + nameBytes
	budget := &pageBudget{size: size, shown: prometheus.NewGauge(prometheus.GaugeOpts{})}
	var runs []*pageAccount
	for i := range 500 {
		run := &pageAccount{budget: budget}
		runs = append(runs, run)
		for range 2 {
			n, paid := run.reserve(largestPage, most)
			if i == 0 && n < largestPage*9/10 || n < smallestPage || paid != n*most {
				t.Fatalf("run %d got a page of %d devices for %d", i, n, paid)
			}
		}
	}
	if excess := 2 * 500 * smallestPage * most; budget.used > size+excess {
		t.Errorf("%d bytes are taken of %d", budget.used, size)
	}
	for _, run := range runs {
		run.leave()
	}
	if budget.used != 0 {
		t.Errorf("%d bytes are taken in the end", budget.used)
	}
}

// A database may answer anything.
func TestTotalsThatCannotBe(t *testing.T) {
	for name, totals := range map[string]fleet.ResultTotals{
		"cursor":   {Upto: strings.Repeat("x", 49)},
		"negative": {Upto: "a", Succeeded: -1},
		"overflow": {Upto: "a", Failed: 1 << 62},
		"name":     {Upto: "a", FirstFailed: []fleet.Failure{{Name: "a b"}}},
	} {
		if checkTotals(totals) == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := checkTotals(fleet.ResultTotals{Upto: "a", Succeeded: 1, FirstFailed: []fleet.Failure{{Name: "a"}}}); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		names []string
		more  bool
	}{"none, and more": {nil, true}, "order": {[]string{"c", "b"}, false}, "twice": {[]string{"b", "b"}, false}, "before": {[]string{"a"}, false}, "no name": {[]string{"b c"}, false}} {
		if checkNames(c.names, "a", c.more) == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A share that gets no acknowledgements in time has less to say, and none of the last places.
func TestWindowKeepsPlacesForOthers(t *testing.T) {
	w := newWindow(256)
	greedy := full(t, w)
	small := w.join()
	if n, err := small.acquire(t.Context(), 5); err != nil || n != 1 {
		t.Errorf("a newcomer got %d places (%v) of a window that is full", n, err)
	}
	greedy.forfeit(20)
	if !greedy.stopped() {
		t.Error("a share with more than its limit may go on")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if n, err := greedy.acquire(ctx, 1); err == nil {
		t.Errorf("it got %d places", n)
	}
	for range 11 {
		greedy.settle()
	}
	if greedy.stopped() {
		t.Error("a share with less than its limit may not go on")
	}
	greedy.release(220, 0)
	if n, err := greedy.acquire(t.Context(), 256); err != nil || n > 256/8 {
		t.Errorf("it got %d places (%v), want no more than a newcomer", n, err)
	}
	greedy.leave()
	small.leave()
	if w.free != 256 {
		t.Errorf("%d places are free in the end", w.free)
	}
}

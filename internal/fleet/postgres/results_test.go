package postgres

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

var resultProduct = fleet.Product{Namespace: "ns", ProductID: "ABCDE12345"}

// epoch is that of the run that has the results in tests of one run.
const epoch = "host_1/3#1"

// take gives the results of a task to a run.
func (h *harness) take(t testing.TB, uid, epoch, after string, failures int) fleet.ResultTotals {
	t.Helper()
	run := fleet.ResultsRun{TaskUID: uid, Namespace: resultProduct.Namespace, TaskName: "task-" + uid, Epoch: epoch}
	totals, err := h.store.Results().Take(t.Context(), run, resultProduct, after, failures)
	if err != nil {
		t.Fatal(err)
	}
	return totals
}

// keptUIDs returns of which tasks results are kept.
func (h *harness) keptUIDs(t testing.TB) []string {
	t.Helper()
	uids, after := []string{}, ""
	for {
		kept, err := h.store.Results().Tasks(t.Context(), after)
		if err != nil {
			t.Fatal(err)
		}
		if len(kept) == 0 {
			return uids
		}
		for _, task := range kept {
			uids, after = append(uids, task.TaskUID), task.TaskUID
		}
	}
}

// remove deletes all results of a task, whosever they are.
func (h *harness) remove(t testing.TB, uid string) {
	t.Helper()
	kept, err := h.store.Results().Tasks(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range kept {
		if task.TaskUID == uid {
			if err := h.store.Results().Delete(t.Context(), task); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (h *harness) list(t testing.TB, uid string, failedOnly bool) []Result {
	t.Helper()
	got := []Result{}
	err := h.store.Results().List(t.Context(), uid, failedOnly, func(r Result) error {
		got = append(got, r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestResultsAgainstModel records and deletes ranges at random, with
// overlaps of every kind, and compares with a map.
func TestResultsAgainstModel(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	random := rand.New(rand.NewPCG(1, 2))
	results := h.store.Results()
	models := map[string]map[string]Result{"one": {}, "two": {}}
	covered := map[string][]bool{"one": make([]bool, 14), "two": make([]bool, 14)} // up to each name, and to the end
	h.take(t, "one", epoch, "", 0)
	h.take(t, "two", epoch, "", 0)
	alphabet := []string{"-", "A", "B", "Z", "_", "a", "aa", "b", "c", "d-1", "d-2", "e", "z"} // in order
	for step := range 400 {
		uid := []string{"one", "two"}[random.IntN(2)]
		model := models[uid]
		after, upto := "", ""
		from, to := random.IntN(len(alphabet)), random.IntN(len(alphabet)+1)
		if from > 0 {
			after = alphabet[from-1]
		}
		names := alphabet[min(from, to):to]
		if to < len(alphabet) && to > 0 {
			upto = alphabet[to-1]
		}
		at := time.UnixMilli(1700000000000 + int64(step))
		switch action := random.IntN(20); {
		case action == 0:
			h.remove(t, uid)
			h.take(t, uid, epoch, "", 0)
			clear(model)
			clear(covered[uid])
		case len(names) == 0:
			continue
		default:
			r := fleet.ResultRange{After: after, Upto: upto, At: at, Epoch: epoch}
			maps.DeleteFunc(model, func(name string, _ Result) bool { return name > after && (upto == "" || name <= upto) })
			for _, name := range names {
				switch random.IntN(4) {
				case 0:
					f := fleet.Failure{Name: name, Reason: "ShadowTooLarge", Message: fmt.Sprint("step ", step)}
					r.Failed = append(r.Failed, f)
					model[name] = Result{Name: name, Failed: true, Reason: f.Reason, Message: f.Message, At: at}
				case 1: // deleted meanwhile
				default:
					r.Succeeded = append(r.Succeeded, name)
					model[name] = Result{Name: name, At: at}
				}
			}
			slices.Reverse(r.Succeeded)
			for i := from; i < to || i == len(alphabet) && upto == ""; i++ {
				covered[uid][i] = true
			}
			for range 1 + random.IntN(2) { // the same twice is the same once
				if err := results.Record(t.Context(), uid, resultProduct, r); err != nil {
					t.Fatal(err)
				}
			}
		}
		for uid, model := range models {
			want, failed := []Result{}, []Result{}
			for _, name := range slices.Sorted(maps.Keys(model)) {
				want = append(want, model[name])
				if model[name].Failed {
					failed = append(failed, model[name])
				}
			}
			if diff := gocmp.Diff(want, h.list(t, uid, false)); diff != "" {
				t.Fatalf("step %d: results of task %s (-want +got):\n%s", step, uid, diff)
			}
			if diff := gocmp.Diff(failed, h.list(t, uid, true)); diff != "" {
				t.Fatalf("step %d: failures of task %s (-want +got):\n%s", step, uid, diff)
			}
			// What follows any name up to the first gap.
			limit, at := random.IntN(5), random.IntN(len(alphabet)+1)
			bounds := append(slices.Clone(alphabet), aboveNames)
			totals := fleet.ResultTotals{}
			if at > 0 {
				totals.Upto = bounds[at-1]
			}
			from := totals.Upto
			for i := at; i < len(bounds) && covered[uid][i]; i++ {
				totals.Upto = bounds[i]
			}
			for _, r := range want {
				switch {
				case r.Name <= from || r.Name > totals.Upto:
				case !r.Failed:
					totals.Succeeded++
				default:
					if totals.Failed++; len(totals.FirstFailed) < limit {
						totals.FirstFailed = append(totals.FirstFailed, fleet.Failure{Name: r.Name, Reason: r.Reason, Message: r.Message})
					}
				}
			}
			got := h.take(t, uid, epoch, from, limit)
			if diff := gocmp.Diff(totals, got, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("step %d: totals of task %s behind %q with %d failures (-want +got):\n%s", step, uid, from, limit, diff)
			}
		}
	}
}

func TestResultsPages(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	results := h.store.Results()
	const size, ranges = 100, 3*rangePage + 1
	h.take(t, "uid", epoch, "", 0)
	var want []string
	after := ""
	for i := range ranges {
		var r fleet.ResultRange
		for j := range size {
			name := deviceName(i*size + j)
			want = append(want, name)
			if j%2 == 0 {
				r.Failed = append(r.Failed, fleet.Failure{Name: name, Reason: "X", Message: "half\x00\xffway"})
			} else {
				r.Succeeded = append(r.Succeeded, name)
			}
			r.Upto = name
		}
		r.After, r.At, r.Epoch = after, time.UnixMilli(1), epoch
		after = r.Upto
		if i%10 == 3 { // a range in which all were deleted
			r.Succeeded, r.Failed = nil, nil
			want = want[:len(want)-size]
		}
		if err := results.Record(t.Context(), "uid", resultProduct, r); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	failed := 0
	for _, r := range h.list(t, "uid", false) {
		got = append(got, r.Name)
		if r.Failed {
			failed++
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if only := len(h.list(t, "uid", true)); failed != len(want)/2 || only != failed || only <= failurePage {
		t.Errorf("%d failures among all, %d of their own, want %d and more than a page", failed, only, len(want)/2)
	}
	full := errors.New("enough")
	if err := results.List(t.Context(), "uid", false, func(Result) error { return full }); !errors.Is(err, full) {
		t.Errorf("error %v, want that of the caller", err)
	}
	if uids := h.keptUIDs(t); len(uids) != 1 || uids[0] != "uid" {
		t.Errorf("tasks %q", uids)
	}
	h.remove(t, "uid")
	if uids := h.keptUIDs(t); len(uids) != 0 || len(h.list(t, "uid", false)) != 0 {
		t.Errorf("after Delete: tasks %q", uids)
	}
}

func TestRecordRefuses(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	for name, r := range map[string]fleet.ResultRange{
		"name before the range": {After: "b", Upto: "d", Succeeded: []string{"b"}},
		"name behind it":        {After: "b", Upto: "d", Failed: []fleet.Failure{{Name: "e"}}},
		"two results":           {Succeeded: []string{"a"}, Failed: []fleet.Failure{{Name: "a"}}},
		"twice":                 {Succeeded: []string{"a", "a"}},
		"no range":              {After: "d", Upto: "d"},
		"no name":               {Succeeded: []string{"a/b"}},
	} {
		if err := h.store.Results().Record(t.Context(), "uid", resultProduct, r); !errors.Is(err, errNotInRange) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestRecordConcurrently : one run records from several goroutines, as it does not.
func TestRecordConcurrently(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	h.take(t, "uid", epoch, "", 0)
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 25 {
				from := (i*7 + w*3) % 80
				r := fleet.ResultRange{After: deviceName(from), Upto: deviceName(from + 20), At: time.UnixMilli(1), Epoch: epoch}
				for j := range 20 {
					r.Succeeded = append(r.Succeeded, deviceName(from+1+j))
				}
				if err := h.store.Results().Record(t.Context(), "uid", resultProduct, r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	got := h.list(t, "uid", false)
	distinct := slices.CompactFunc(slices.Clone(got), func(a, b Result) bool { return a.Name == b.Name })
	if len(distinct) != len(got) || len(got) == 0 {
		t.Errorf("%d results of %d devices", len(got), len(distinct))
	}
}

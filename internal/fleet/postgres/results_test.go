package postgres

import (
	"cmp"
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
	reached := map[string]string{}
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
			if err := results.Delete(t.Context(), uid); err != nil {
				t.Fatal(err)
			}
			clear(model)
			reached[uid] = ""
		case len(names) == 0:
			continue
		default:
			r := fleet.ResultRange{After: after, Upto: upto, At: at}
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
			reached[uid] = max(reached[uid], cmp.Or(upto, aboveNames))
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
			limit := random.IntN(5)
			totals := fleet.ResultTotals{Upto: reached[uid], Succeeded: int64(len(want) - len(failed)), Failed: int64(len(failed))}
			for _, r := range failed[:min(limit, len(failed))] {
				totals.FirstFailed = append(totals.FirstFailed, fleet.Failure{Name: r.Name, Reason: r.Reason, Message: r.Message})
			}
			got, err := results.Totals(t.Context(), uid, limit)
			if diff := gocmp.Diff(totals, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
				t.Fatalf("step %d: error %v, totals of task %s with %d failures (-want +got):\n%s", step, err, uid, limit, diff)
			}
		}
	}
}

func TestResultsPages(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	results := h.store.Results()
	const size, ranges = 100, 3*rangePage + 1
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
		r.After, r.At = after, time.UnixMilli(1)
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
	if uids, err := results.Tasks(t.Context()); err != nil || len(uids) != 1 || uids[0] != "uid" {
		t.Errorf("tasks %q (error %v)", uids, err)
	}
	if err := results.Delete(t.Context(), "uid"); err != nil {
		t.Fatal(err)
	}
	if uids, err := results.Tasks(t.Context()); err != nil || len(uids) != 0 || len(h.list(t, "uid", false)) != 0 {
		t.Errorf("after Delete: tasks %q (error %v)", uids, err)
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

// TestRecordConcurrently : an old executor that does not know that it is none any more
// records beside the new one.
func TestRecordConcurrently(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 25 {
				from := (i*7 + w*3) % 80
				r := fleet.ResultRange{After: deviceName(from), Upto: deviceName(from + 20), At: time.UnixMilli(1)}
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

package postgres

import (
	"errors"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

const later = "host_2/4#1"

// between is the range of the devices behind number from, up to number to.
func between(epoch string, from, to int) fleet.ResultRange {
	r := fleet.ResultRange{After: deviceName(from), Upto: deviceName(to), At: time.UnixMilli(1), Epoch: epoch}
	for i := from + 1; i <= to; i++ {
		r.Succeeded = append(r.Succeeded, deviceName(i))
	}
	return r
}

func (h *harness) record(t *testing.T, r fleet.ResultRange) {
	t.Helper()
	if err := h.store.Results().Record(t.Context(), "uid", resultProduct, r); err != nil {
		t.Fatal(err)
	}
}

func (h *harness) wantForeign(t *testing.T, r fleet.ResultRange) {
	t.Helper()
	if err := h.store.Results().Record(t.Context(), "uid", resultProduct, r); !errors.Is(err, fleet.ErrForeignEpoch) {
		t.Errorf("error %v, want that the results are another's", err)
	}
}

// A run whose results another has taken over records nothing any more, neither behind what
// is there nor in its place.
func TestForeignEpoch(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	h.wantForeign(t, between(epoch, 0, 10)) // they are nobody's
	h.take(t, "uid", epoch, deviceName(0), 0)
	h.record(t, between(epoch, 0, 10))
	h.record(t, between(epoch, 10, 20))

	totals := h.take(t, "uid", later, deviceName(0), 0)
	if diff := gocmp.Diff(fleet.ResultTotals{Upto: deviceName(20), Succeeded: 20}, totals, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
	h.wantForeign(t, between(epoch, 20, 30))
	failing := between(epoch, 5, 15)
	failing.Succeeded = nil
	for i := 6; i <= 15; i++ {
		failing.Failed = append(failing.Failed, fleet.Failure{Name: deviceName(i), Reason: "X"})
	}
	h.wantForeign(t, failing)
	if got, failed := len(h.list(t, "uid", false)), len(h.list(t, "uid", true)); got != 20 || failed != 0 {
		t.Errorf("%d results with %d failures, want 20 without", got, failed)
	}
	h.record(t, between(later, 20, 30))
}

// A row that an older program made belongs to whoever takes it.
func TestResultsOfAnOlderProgram(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	h.exec(t, `INSERT INTO batchtask_result_task (task_uid, namespace, product_id) VALUES ('uid', 'ns', 'ABCDE12345')`)
	h.exec(t, `INSERT INTO batchtask_result_range (task_uid, after_name, upto_name, succeeded, at_ms) VALUES ('uid', '', 'b', '{a,b}', 1)`)
	if totals := h.take(t, "uid", epoch, "a", 0); totals.Upto != "b" || totals.Succeeded != 1 {
		t.Errorf("totals %+v", totals)
	}
	kept, err := h.store.Results().Tasks(t.Context(), "")
	want := []fleet.KeptResults{{TaskUID: "uid", Namespace: "ns", TaskName: "task-uid", Epoch: epoch}}
	if diff := gocmp.Diff(want, kept); diff != "" || err != nil {
		t.Errorf("error %v, kept (-want +got):\n%s", err, diff)
	}
}

// A process stands still after it has read whose the results are, another takes them
// meanwhile: they stay the other's. One that is in doubt does not take them.
func TestTakeStandsStill(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	for name, first := range map[string]bool{"new": true, "resumed": false} {
		t.Run(name, func(t *testing.T) {
			h.remove(t, "uid")
			if !first {
				h.take(t, "uid", "host_0/2#1", "", 0)
			}
			run := fleet.ResultsRun{TaskUID: "uid", Epoch: epoch, Sure: func() bool { return false }}
			if _, err := h.store.Results().Take(t.Context(), run, resultProduct, "", 0); !errors.Is(err, errDoubt) {
				t.Errorf("in doubt: error %v", err)
			}
			run.Sure = func() bool {
				h.take(t, "uid", later, "", 0)
				return true
			}
			if _, err := h.store.Results().Take(t.Context(), run, resultProduct, "", 0); !errors.Is(err, fleet.ErrForeignEpoch) {
				t.Errorf("error %v, want that the results are another's", err)
			}
			h.record(t, between(later, 0, 10))
			// An answer that was lost: its own it takes again.
			h.take(t, "uid", later, "", 0)
		})
	}
}

// A server that loses its last commits leaves a gap, since what came after it was recorded.
func TestGap(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	h.take(t, "uid", epoch, "", 0)
	for from := 0; from < 50; from += 10 {
		r := between(epoch, from, from+10)
		r.Succeeded = r.Succeeded[1:]
		r.Failed = []fleet.Failure{{Name: deviceName(from + 1), Reason: "X", Message: "y"}}
		h.record(t, r)
	}
	h.exec(t, `DELETE FROM batchtask_result_range WHERE task_uid = 'uid' AND upto_name = $1`, deviceName(30))
	h.exec(t, `DELETE FROM batchtask_result_failure WHERE task_uid = 'uid' AND device_name = $1`, deviceName(21))
	failure := func(i int) fleet.Failure { return fleet.Failure{Name: deviceName(i), Reason: "X", Message: "y"} }
	for _, tc := range []struct {
		after int
		want  fleet.ResultTotals
	}{
		{0, fleet.ResultTotals{Upto: deviceName(20), Succeeded: 18, Failed: 2, FirstFailed: []fleet.Failure{failure(1), failure(11)}}},
		{4, fleet.ResultTotals{Upto: deviceName(20), Succeeded: 15, Failed: 1, FirstFailed: []fleet.Failure{failure(11)}}},
		{20, fleet.ResultTotals{Upto: deviceName(20)}},
		// The status is behind what is missing, and counts.
		{30, fleet.ResultTotals{Upto: deviceName(50), Succeeded: 18, Failed: 2, FirstFailed: []fleet.Failure{failure(31), failure(41)}}},
		{35, fleet.ResultTotals{Upto: deviceName(50), Succeeded: 14, Failed: 1, FirstFailed: []fleet.Failure{failure(41)}}},
		{60, fleet.ResultTotals{Upto: deviceName(60)}},
	} {
		got := h.take(t, "uid", epoch, deviceName(tc.after), 5)
		if diff := gocmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("behind device %d (-want +got):\n%s", tc.after, diff)
		}
	}
}

// What is deleted is what was looked at: not the results of a run that took them since.
func TestDeleteIsConditional(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	results := h.store.Results()
	h.take(t, "uid", epoch, deviceName(0), 0)
	h.record(t, between(epoch, 0, 10))
	kept, err := results.Tasks(t.Context(), "")
	if err != nil || len(kept) != 1 {
		t.Fatalf("%d tasks, error %v", len(kept), err)
	}
	h.take(t, "uid", later, deviceName(0), 0)
	if err := results.Delete(t.Context(), kept[0]); !errors.Is(err, fleet.ErrForeignEpoch) {
		t.Errorf("error %v, want that the results are another's", err)
	}
	if got := len(h.list(t, "uid", false)); got != 10 {
		t.Errorf("%d results, want all 10", got)
	}
	// A deletion that was broken off can be gone on with, and nobody records meanwhile.
	h.exec(t, `UPDATE batchtask_result_task SET epoch = $1`, condemned)
	h.wantForeign(t, between(later, 10, 20))
	h.remove(t, "uid")
	if uids := h.keptUIDs(t); len(uids) != 0 || len(h.list(t, "uid", false)) != 0 {
		t.Errorf("results of %q are left", uids)
	}
}

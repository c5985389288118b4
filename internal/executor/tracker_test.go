package executor

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/api/v1alpha1"
)

// In any order of results, what is counted is what lies up to the watermark.
func TestTrackerCountsUpToTheWatermark(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		size := 1 + random.IntN(20)
		tr := newTracker(size, "a", 10, 5, nil)
		results := map[uint64]result{}
		open := []uint64{}
		next := uint64(0)
		for step := range 200 {
			if tr.room() > 0 && random.IntN(2) == 0 {
				if got := tr.add(name(next)); got != next {
					t.Fatalf("seed %d step %d: add returned %d, want %d", seed, step, got, next)
				}
				open, next = append(open, next), next+1
			} else if len(open) > 0 {
				i := random.IntN(len(open))
				results[open[i]] = []result{succeeded, failed, gone}[random.IntN(3)]
				tr.settle(open[i], results[open[i]], "Reason", "")
				tr.settle(open[i], succeeded, "", "") // late second results change nothing
				open = append(open[:i], open[i+1:]...)
			}
			checkTracker(t, tr, results, next, fmt.Sprintf("seed %d step %d", seed, step))
		}
		if tr.open() > size {
			t.Errorf("seed %d: %d devices are open in a tracker for %d", seed, tr.open(), size)
		}
	}
}

func checkTracker(t *testing.T, tr *tracker, results map[uint64]result, added uint64, where string) {
	t.Helper()
	wantCursor, wantSucceeded, wantFailed := "a", int64(10), int64(5)
	for seq := range added {
		r, ok := results[seq]
		if !ok {
			break
		}
		wantCursor = name(seq)
		switch r {
		case succeeded:
			wantSucceeded++
		case failed:
			wantFailed++
		case gone, pending:
		}
	}
	if tr.cursor != wantCursor || tr.succeeded != wantSucceeded || tr.failed != wantFailed {
		t.Fatalf("%s: cursor %q, %d succeeded, %d failed; want %q, %d, %d",
			where, tr.cursor, tr.succeeded, tr.failed, wantCursor, wantSucceeded, wantFailed)
	}
}

func TestTrackerRemembersTheFirstFailures(t *testing.T) {
	tr := newTracker(100, "", 0, 1, []v1alpha1.DeviceFailure{{DeviceName: "before", Reason: "Old"}})
	for i := range uint64(100) {
		tr.add(name(i))
	}
	for i := range uint64(100) { // from the last to the first: the order of names counts
		tr.settle(99-i, failed, "New", "because")
	}
	want := []v1alpha1.DeviceFailure{{DeviceName: "before", Reason: "Old"}}
	for i := range uint64(MaxFailures - 1) {
		want = append(want, v1alpha1.DeviceFailure{DeviceName: name(i), Reason: "New", Message: "because"})
	}
	if diff := cmp.Diff(want, tr.failures); diff != "" {
		t.Errorf("failures (-want +got):\n%s", diff)
	}
	if tr.failed != 101 {
		t.Errorf("failed = %d, want 101", tr.failed)
	}
}

func TestTrackerCloseCountsWhatHasAResult(t *testing.T) {
	tr := newTracker(10, "", 0, 0, nil)
	for i := range uint64(6) {
		tr.add(name(i))
	}
	tr.settle(1, succeeded, "", "")
	tr.settle(3, failed, "Reason", "")
	tr.settle(5, succeeded, "", "")
	tr.close()
	if tr.succeeded != 2 || tr.failed != 1 || tr.open() != 0 {
		t.Errorf("%d succeeded, %d failed, %d open; want 2, 1, 0", tr.succeeded, tr.failed, tr.open())
	}
}

func name(seq uint64) string { return fmt.Sprintf("d-%05d", seq) }

// Devices that the checkpoint names as pending get their results in any order. At each step a
// device is counted or named, never neither: a crash may come then.
func TestPendingAreCountedOrNamed(t *testing.T) {
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 2))
		names := make([]string, 1+random.IntN(9))
		for i := range names {
			names[i] = name(uint64(10 * i))
		}
		tr := newTracker(20, "z", 0, 0, nil)
		tr.readmit(names)
		for range 10 {
			tr.add("z" + name(tr.tail))
		}
		left := len(names)
		for step, seq := range random.Perm(len(names) + 10) {
			if tr.settle(uint64(seq), succeeded, "", ""); seq < len(names) {
				left--
			}
			if random.IntN(12) == 0 {
				tr.park(MaxPending)
			}
			behind := max(0, int(tr.head)-len(names))
			if got := int(tr.succeeded) + len(tr.pending()); got != len(names)+behind {
				t.Fatalf("seed %d step %d, %d have no result: %d are counted and %v named, of %d", seed, step, left, tr.succeeded, tr.pending(), len(names)+behind)
			}
			if tr.parked {
				break
			}
		}
	}
}

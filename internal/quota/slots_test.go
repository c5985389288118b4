package quota

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testobj"
)

func TestLimitError(t *testing.T) {
	names := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("task-%02d", i))
		}
		return list
	}
	for _, tc := range []struct {
		name    string
		holders []string
		limit   int32
		want    string
	}{
		{"no task may run", nil, 0, `namespace "ns" may have 0 active tasks (TaskQuota "default", spec.maxActiveTasks)`},
		{"two", names(2), 2, `namespace "ns" may have 2 active tasks (TaskQuota "default", spec.maxActiveTasks), and these are waiting or processing: task-00, task-01`},
		{
			"more than anybody reads", names(12), 12,
			`namespace "ns" may have 12 active tasks (TaskQuota "default", spec.maxActiveTasks), and these are waiting or processing: task-00, task-01, task-02, task-03, task-04, task-05, task-06, task-07, task-08, task-09 and 2 more`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := &LimitError{Namespace: "ns", Limit: tc.limit, Holders: tc.holders}
			if diff := cmp.Diff(tc.want, err.Error()); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTake(t *testing.T) {
	now := metav1.NewTime(time.Unix(1_700_000_000, 0))
	for _, tc := range []struct {
		name        string
		ledger      *v1alpha1.TaskQuota
		bound       bool
		wantSlots   string
		wantChanged bool
		wantLimit   bool
	}{
		{"reserve a free one", testobj.TaskQuota("ns").Obj(), false, "task:false", true, false},
		{"bind a free one", testobj.TaskQuota("ns").Obj(), true, "task:true", true, false},
		{"reserve again", testobj.TaskQuota("ns").Slot("uid", "task", false).Obj(), false, "task:false", false, false},
		{"bind what was reserved", testobj.TaskQuota("ns").Slot("uid", "task", false).Obj(), true, "task:true", true, false},
		{"bind again", testobj.TaskQuota("ns").Slot("uid", "task", true).Obj(), true, "task:true", false, false},
		{"reserve what is bound", testobj.TaskQuota("ns").Slot("uid", "task", true).Obj(), false, "task:true", false, false},
		{"the last one", testobj.TaskQuota("ns").Limit(2).Slot("a", "a", true).Obj(), false, "a:true task:false", true, false},
		{"none is left", testobj.TaskQuota("ns").Limit(1).Slot("a", "a", true).Obj(), true, "a:true", false, true},
		{"one's own, though the limit was lowered", testobj.TaskQuota("ns").Limit(1).Slot("a", "a", true).Slot("uid", "task", false).Obj(), true, "a:true task:true", true, false},
		{"none may run", testobj.TaskQuota("ns").Limit(0).Obj(), false, "", false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			changed, err := take(tc.ledger, Holder{UID: "uid", Namespace: "ns", Name: "task"}, tc.bound, now)
			var limit *LimitError
			if isLimit := errors.As(err, &limit); changed != tc.wantChanged || isLimit != tc.wantLimit {
				t.Errorf("changed %v, error %v; want changed %v, limit error %v", changed, err, tc.wantChanged, tc.wantLimit)
			}
			if diff := cmp.Diff(tc.wantSlots, slotsOf(tc.ledger)); diff != "" {
				t.Errorf("slots (-want +got):\n%s", diff)
			}
		})
	}
}

func slotsOf(q *v1alpha1.TaskQuota) string {
	text := ""
	for i, slot := range q.Status.Slots {
		if i > 0 {
			text += " "
		}
		text += fmt.Sprintf("%s:%v", slot.Name, slot.Bound)
	}
	return text
}

func TestUnfinished(t *testing.T) {
	at := func(seconds int64) metav1.Time { return metav1.Unix(seconds, 0) }
	task := func(name string, phase v1alpha1.TaskPhase, created metav1.Time) v1alpha1.BatchTask {
		return *testobj.BatchTask(name).Created(types.UID(name), created).Phase(phase).Obj()
	}
	got := ""
	for _, task := range unfinished([]v1alpha1.BatchTask{
		task("new-old", "", at(1)), task("done", v1alpha1.TaskPhaseDone, at(1)), task("b", v1alpha1.TaskPhaseWaiting, at(5)),
		task("failed", v1alpha1.TaskPhaseFailed, at(1)), task("a", v1alpha1.TaskPhaseProcessing, at(5)), task("old", v1alpha1.TaskPhaseWaiting, at(2)),
		task("cancelled", v1alpha1.TaskPhaseCancelled, at(1)), task("new", "", at(9)),
	}) {
		got += task.Name + " "
	}
	if want := "old a b new-old new "; got != want {
		t.Errorf("unfinished tasks are %s, want %s", got, want)
	}
}

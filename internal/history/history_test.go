package history_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/history"
	"batchtask.dev/operator/internal/testobj"
)

const frontID = "65e1f0a2000012345678abcd"

func task(name string, ttl *int32) *v1alpha1.BatchTask {
	return testobj.BatchTask(name).Phase(v1alpha1.TaskPhaseDone).Change(func(task *v1alpha1.BatchTask) {
		task.Spec.TTLSecondsAfterFinished = ttl
		task.Status.TaskID = frontID
	}).Obj()
}

func TestTTL(t *testing.T) {
	for _, tc := range []struct {
		name     string
		task     *v1alpha1.BatchTask
		want     time.Duration
		wantEnds bool
	}{
		{"says nothing", task("a", nil), 0, false},
		{"at once", task("a", ptr.To[int32](0)), 0, true},
		{"what was the default", task("a", ptr.To[int32](2592000)), 0, false},
		{"the same, a second longer", task("a", ptr.To[int32](2592001)), 2592001 * time.Second, true},
		{"what was the default, of the HTTP front", task(frontID, ptr.To[int32](2592000)), 30 * 24 * time.Hour, true},
		{"an ID as name, but not its own", task("65e1f0a2000012345678abce", ptr.To[int32](2592000)), 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ends := history.TTL(tc.task)
			if got != tc.want || ends != tc.wantEnds {
				t.Errorf("kept for %s (%t), want %s (%t)", got, ends, tc.want, tc.wantEnds)
			}
		})
	}
}

func TestExcess(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var tasks []v1alpha1.BatchTask
	add := func(name, id string, minute int, ttl *int32, phase v1alpha1.TaskPhase) {
		completed := metav1.NewTime(at.Add(time.Duration(minute) * time.Minute))
		tasks = append(tasks, *testobj.BatchTask(name).Phase(phase).Change(func(task *v1alpha1.BatchTask) {
			task.Spec.TTLSecondsAfterFinished, task.Status.TaskID, task.Status.CompletionTime = ttl, id, &completed
		}).Obj())
	}
	for i := range 4 {
		add(fmt.Sprint("own-", i), "", 10-i, ptr.To[int32](60), v1alpha1.TaskPhaseDone)
		id := fmt.Sprintf("65e1f0a2000012345678abc%d", i)
		add(id, id, i, ptr.To[int32](2592000), v1alpha1.TaskPhaseFailed)
	}
	add("for-ever", "", 0, nil, v1alpha1.TaskPhaseDone)
	add("old-default", "", 0, ptr.To[int32](2592000), v1alpha1.TaskPhaseDone)
	add("running", "", 0, ptr.To[int32](60), v1alpha1.TaskPhaseProcessing)
	names := func(limits history.Limits) (names []string) {
		for _, task := range history.Excess(tasks, limits) {
			names = append(names, task.Name)
		}
		return names
	}
	for _, tc := range []struct {
		limits history.Limits
		want   []string
	}{
		{history.Limits{Tasks: 4, FromFront: 4}, nil},
		{history.Limits{Tasks: 2, FromFront: 4}, []string{"own-3", "own-2"}},
		{history.Limits{Tasks: 4, FromFront: 3}, []string{"65e1f0a2000012345678abc0"}},
		{history.Limits{}, []string{
			"own-3", "own-2", "own-1", "own-0",
			"65e1f0a2000012345678abc0", "65e1f0a2000012345678abc1", "65e1f0a2000012345678abc2", "65e1f0a2000012345678abc3",
		}},
	} {
		if diff := cmp.Diff(tc.want, names(tc.limits)); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tc.limits, diff)
		}
	}
	if got := history.LimitsOf(nil); got != (history.Limits{Tasks: 1000, FromFront: 10000}) {
		t.Errorf("limits of a namespace without a TaskQuota: %+v", got)
	}
}

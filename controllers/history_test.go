package controllers_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// A namespace keeps as many finished tasks with a TTL as its TaskQuota says, those of the
// HTTP front apart, and all that have none.
func TestHistoryLimit(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	quota := testobj.TaskQuota(namespace).Obj()
	quota.Spec.MaxFinishedTasks, quota.Spec.MaxFinishedLegacyTasks = ptr.To[int32](2), ptr.To[int32](3)
	if err := env.Client.Create(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	finished := func(name string, minute int, ttl *int32) {
		t.Helper()
		task := testobj.BatchTask(name).In(namespace).Publish("event", "close").Obj()
		task.Spec.TTLSecondsAfterFinished = ttl
		if err := env.Client.Create(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		completed := metav1.NewTime(now.Add(time.Duration(minute-60) * time.Minute))
		task.Status = v1alpha1.BatchTaskStatus{Phase: v1alpha1.TaskPhaseDone, CompletionTime: &completed, TaskID: "0123456789abcdef01234567"}
		if strings.HasPrefix(name, "65e1") {
			task.Status.TaskID = name
		}
		if err := env.Client.Status().Update(t.Context(), task); err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	for i := range 5 {
		finished(fmt.Sprint("own-", i), i, ptr.To[int32](86400))
		finished(fmt.Sprintf("65e1f0a2000012345678abc%d", i), i, ptr.To(v1alpha1.LegacyTTLSecondsAfterFinished))
		finished(fmt.Sprint("for-ever-", i), i, nil)
		finished(fmt.Sprint("was-default-", i), i, ptr.To(v1alpha1.LegacyTTLSecondsAfterFinished))
		want = append(want, fmt.Sprint("for-ever-", i), fmt.Sprint("was-default-", i))
	}
	op := run(t, settings{})
	names := func() (names []string) {
		var list v1alpha1.BatchTaskList
		if err := env.Client.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
			t.Fatal(err)
		}
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		slices.Sort(names)
		return names
	}
	kept := func(what string, more ...string) {
		t.Helper()
		all := slices.Sorted(slices.Values(append(slices.Clone(want), more...)))
		waitFor(t, what, func() (bool, any) {
			diff := cmp.Diff(all, names())
			return diff == "", diff
		})
	}
	kept("the oldest to be deleted", "own-3", "own-4", "65e1f0a2000012345678abc2", "65e1f0a2000012345678abc3", "65e1f0a2000012345678abc4")
	op.patch(t, quota, `{"spec":{"maxFinishedTasks":1,"maxFinishedLegacyTasks":0}}`)
	kept("more to be deleted when the limits fall", "own-4")
	// One more that finishes pushes out the oldest.
	finished("own-5", 5, ptr.To[int32](86400))
	kept("the next oldest to be deleted", "own-5")
}

// The cache keeps of a finished task what the reconcilers ask for, and nothing of its
// payload; of others everything.
func TestStripFinished(t *testing.T) {
	now := metav1.NewTime(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	full := func(phase v1alpha1.TaskPhase) *v1alpha1.BatchTask {
		return testobj.BatchTask("task").In("ns").UpdateShadow(`{"state":"open"}`).TTL(60).Created("uid", now).
			Label(v1alpha1.LabelTaskID, "id").Phase(phase).Change(func(task *v1alpha1.BatchTask) {
			task.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
			task.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "the payload once more"}
			task.Status.Failures = []v1alpha1.DeviceFailure{{DeviceName: "door"}}
			task.Status.CompletionTime, task.Status.ErrMsg = &now, "devices failed"
		}).Obj()
	}
	strip := func(obj any) any {
		t.Helper()
		got, err := controllers.StripFinished(obj)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	running := full(v1alpha1.TaskPhaseProcessing)
	running.ManagedFields = nil
	if diff := cmp.Diff(any(running), strip(full(v1alpha1.TaskPhaseProcessing))); diff != "" {
		t.Errorf("a task that runs was changed (-want +got):\n%s", diff)
	}
	want := testobj.BatchTask("task").In("ns").TTL(60).Created("uid", now).Phase(v1alpha1.TaskPhaseFailed).Change(func(task *v1alpha1.BatchTask) {
		task.Spec.TaskType, task.Spec.DeviceNameFilter, task.Spec.MaxExecutionTimeInSeconds = v1alpha1.TaskTypeUpdateShadow, "", 0
		task.Status.CompletionTime = &now
	}).Obj()
	if diff := cmp.Diff(any(want), strip(full(v1alpha1.TaskPhaseFailed))); diff != "" {
		t.Errorf("of a finished task is kept (-want +got):\n%s", diff)
	}
	if got := strip("something else"); got != "something else" {
		t.Errorf("something else became %v", got)
	}
}

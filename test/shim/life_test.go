package shim_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/testobj"
	"batchtask.dev/operator/test/system"
)

// The life of a task as both versions tell it.
func TestLife(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)

	before := float64(time.Now().Unix())
	created := c.v2(t, "POST", map[string]string{
		"Action": "CreateTask", "taskType": "UpdateShadow", "productID": c.productID, "deviceNameFilter": "door$",
		"scheduleTimeInSeconds": "0", "tasks": `{"updateShadowTask":{"desired":"{\"state\":\"open\"}"}}`,
	})
	id, _ := created["taskId"].(string)
	if diff := cmp.Diff(map[string]any{"taskId": id, "message": "", "codeDesc": "Success", "code": 0.0}, created); diff != "" || len(id) != 24 {
		t.Fatalf("CreateTask (-want +got):\n%s", diff)
	}
	// At once, whatever the controller has done so far.
	first := c.v2(t, "GET", map[string]string{"Action": "DescribeTask", "id": id})
	if first["code"] != 0.0 || first["id"] != id || first["createTime"].(float64) < before-1 || first["scheduleTime"] != first["createTime"] {
		t.Fatalf("DescribeTask right after CreateTask: %v", first)
	}
	object := c.object(t, id)
	name := types.NamespacedName{Namespace: c.namespace, Name: id}
	if want := (v1alpha1.BatchTaskSpec{
		TaskType: v1alpha1.TaskTypeUpdateShadow, ProductID: c.productID, DeviceNameFilter: "door$",
		Tasks: v1alpha1.TaskDetails{UpdateShadowTask: &v1alpha1.UpdateShadowTask{Desired: `{"state":"open"}`}},
	}); !cmp.Equal(want, object.Spec, cmpopts.IgnoreFields(want, "TTLSecondsAfterFinished")) {
		t.Errorf("the object is %+v, want %+v", object.Spec, want)
	}

	system.WaitFor(t, "the task to run", func() (bool, any) {
		return f.Executor.Set(name, executor.Progress{Matched: 8, Succeeded: 3, Cursor: "c"}), nil
	})
	describe := func(want map[string]any) map[string]any {
		t.Helper()
		var seen map[string]any
		system.WaitFor(t, fmt.Sprint("the task to be told as ", want), func() (bool, any) {
			seen = c.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": id})
			for key, value := range want {
				if seen[key] != value {
					return false, seen
				}
			}
			return true, seen
		})
		return seen
	}
	describe(map[string]any{"status": 2.0, "allDeviceCnt": 8.0, "doneDeviceCnt": 3.0, "percent": 37.0, "doneTime": 0.0})
	if got := c.v2(t, "POST", map[string]string{"Action": "CancelTask", "id": id}); got["message"] != "（10003）任务已经开始: id: the task is Processing" {
		t.Errorf("cancelling a task that runs: %v", got)
	}
	f.Executor.Set(name, executor.Progress{Matched: 8, Succeeded: 8, Outcome: executor.OutcomeServed})
	done := describe(map[string]any{"status": 3.0, "percent": 100.0, "doneDeviceCnt": 8.0, "retCode": 0.0, "errMsg": ""})
	if keys := strings.Join(sortedKeys(done), ","); keys != "allDeviceCnt,code,codeDesc,createTime,doneDeviceCnt,doneTime,errMsg,id,message,percent,productID,retCode,scheduleTime,status,type,updateTime" {
		t.Errorf("DescribeTask tells %s", keys)
	}
	if done["doneTime"].(float64) < before-1 || done["updateTime"] != done["doneTime"] || done["type"] != "UpdateShadow" || done["productID"] != c.productID {
		t.Errorf("a task that is done is told as %v", done)
	}
	v3 := c.v3(t, "DescribeTask", fmt.Sprintf(`{"Id":%q}`, id))
	for key, value := range map[string]any{"Id": id, "Status": 3.0, "Percent": 100.0, "AllDeviceCnt": 8.0, "DoneTime": done["doneTime"], "ProductId": c.productID} {
		if v3[key] != value {
			t.Errorf("in V3 %s is %v, want %v", key, v3[key], value)
		}
	}
}

func TestFailedTask(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	id := c.mustCreate(t, nil)
	system.WaitFor(t, "the task to run", func() (bool, any) {
		return f.Executor.Set(types.NamespacedName{Namespace: c.namespace, Name: id},
			executor.Progress{Matched: 2, Succeeded: 1, Failed: 1, Outcome: executor.OutcomeServed}), nil
	})
	system.WaitFor(t, "the task to have failed", func() (bool, any) {
		got := c.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": id})
		return got["status"] == 4.0 && got["retCode"] == 1.0 && got["percent"] == 50.0 && strings.Contains(got["errMsg"].(string), "1 of 2 devices"), got
	})
}

// A task that has not been scheduled can be cancelled, once and again, in either
// version, also one that was not made here.
func TestCancel(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	id := c.mustCreate(t, map[string]string{"scheduleTimeInSeconds": inAnHour()})
	for range 2 {
		if got := c.v2(t, "POST", map[string]string{"Action": "CancelTask", "id": id}); got["code"] != 0.0 || got["message"] != "" {
			t.Fatalf("CancelTask is answered %v", got)
		}
		if got := c.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": id}); got["status"] != 5.0 {
			t.Fatalf("a cancelled task is told as %v", got)
		}
	}
	system.WaitFor(t, "the task to be Cancelled", func() (bool, any) {
		object := c.object(t, id)
		return object.Status.Phase == v1alpha1.TaskPhaseCancelled, object.Status
	})
	if got := c.v3(t, "CancelTask", fmt.Sprintf(`{"Id":%q}`, id)); len(got) != 1 {
		t.Errorf("cancelling it once more: %v", got)
	}

	applied := testobj.BatchTask("by-kubectl").In(c.namespace).Product(c.productID).Publish("event", "x").ScheduleAt(time.Now().Add(time.Hour).Unix()).Obj()
	if err := f.Client.Create(t.Context(), applied); err != nil {
		t.Fatal(err)
	}
	taskID := applied.Labels[v1alpha1.LabelTaskID]
	if got := c.v3(t, "CancelTask", fmt.Sprintf(`{"Id":%q}`, taskID)); len(got) != 1 {
		t.Fatalf("cancelling a task that was applied: %v", got)
	}
	if got := c.v3(t, "DescribeTask", fmt.Sprintf(`{"Id":%q}`, taskID)); got["Status"] != 5.0 || got["Id"] != taskID {
		t.Errorf("a task that was applied, and cancelled, is told as %v", got)
	}
}

// A task is cancelled or started, whichever comes first, and never both. Some calls of
// CancelTask come long before the task starts, some after it has, and most hit the very
// moment.
func TestCancelRace(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	const tasks, early, late, rounds = 20, 3, 3, 3
	f.raiseLimit(t, c, tasks)
	var creating sync.Mutex // one after the other, so that none takes long
	create := func(ahead time.Duration) (id string, at time.Time) {
		creating.Lock()
		defer creating.Unlock()
		at = time.Now().Add(ahead).Truncate(time.Second)
		return c.mustCreate(t, map[string]string{"scheduleTimeInSeconds": fmt.Sprint(at.Unix())}), at
	}
	var cancelled, started atomic.Int64
	for range rounds {
		var calls sync.WaitGroup
		for i := range tasks {
			calls.Go(func() {
				ahead := 4 * time.Second
				if i < early {
					ahead = time.Hour
				}
				id, at := create(ahead)
				switch {
				case i < early:
				case i < tasks-late: // from a little before it starts to a little after
					time.Sleep(time.Until(at.Add(time.Duration(i-early-2) * 8 * time.Millisecond)))
				default:
					system.WaitFor(t, "the task to start", func() (bool, any) {
						object := c.object(t, id)
						return object.Status.Phase == v1alpha1.TaskPhaseProcessing, object.Status
					})
				}
				won := f.cancelOrStarted(t, c, id)
				if i < early && !won || i >= tasks-late && won {
					t.Errorf("task %d of %d: cancelled %t", i, tasks, won)
				}
				if won {
					cancelled.Add(1)
				} else {
					started.Add(1)
				}
			})
		}
		calls.Wait()
	}
	t.Logf("%d were cancelled, %d had started", cancelled.Load(), started.Load())
}

// cancelOrStarted cancels a task and waits for its end: it was cancelled and never
// started, or had started and is Done.
func (f *front) cancelOrStarted(t *testing.T, c *caller, id string) (cancelled bool) {
	t.Helper()
	answer := c.v2(t, "POST", map[string]string{"Action": "CancelTask", "id": id})
	object := c.object(t, id)
	if answer["code"] == 0.0 {
		system.WaitFor(t, "the task to be Cancelled", func() (bool, any) {
			object = c.object(t, id)
			return object.Status.Phase == v1alpha1.TaskPhaseCancelled, object.Status
		})
		if runs := f.Executor.Runs(object.UID); len(runs) > 0 || object.Status.StartTime != nil {
			t.Errorf("task %s was cancelled, and started: %v, %v", id, runs, object.Status.StartTime)
		}
		return true
	}
	if message, _ := answer["message"].(string); !strings.HasPrefix(message, "（10003）任务已经开始") {
		t.Errorf("CancelTask is answered %v", answer)
	}
	system.WaitFor(t, "the task to run, and to be Done", func() (bool, any) {
		f.Executor.Set(client.ObjectKeyFromObject(object), executor.Progress{Matched: 1, Succeeded: 1, Outcome: executor.OutcomeServed})
		object = c.object(t, id)
		return object.Status.Phase == v1alpha1.TaskPhaseDone, object.Status
	})
	return false
}

// raiseLimit lets an account have more active tasks.
func (f *front) raiseLimit(t *testing.T, c *caller, limit int32) {
	t.Helper()
	system.WaitFor(t, "the limit to be raised", func() (bool, any) {
		ledger := &v1alpha1.TaskQuota{}
		err := f.Env.Client.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: v1alpha1.TaskQuotaName}, ledger)
		if err != nil {
			return false, err
		}
		ledger.Spec.MaxActiveTasks = limit
		err = f.Env.Client.Update(t.Context(), ledger)
		return err == nil, err
	})
}

// Lists have every task of the account once, whoever made it, the newest first.
func TestList(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	if got := c.v2(t, "POST", map[string]string{"Action": "ListTasks", "pageNum": "1", "pageSize": "10"}); fmt.Sprint(got["tasks"]) != "[]" || got["taskTotalCount"] != 0.0 {
		t.Errorf("the list of no tasks is %v", got)
	}
	f.raiseLimit(t, c, 20)
	made := map[string]bool{}
	for i := range 7 {
		if i == 3 {
			task := testobj.BatchTask("by-kubectl").In(c.namespace).Product(c.productID).UpdateShadow(`{"a":1}`).ScheduleAt(time.Now().Add(time.Hour).Unix()).Obj()
			if err := f.Client.Create(t.Context(), task); err != nil {
				t.Fatal(err)
			}
			made[task.Labels[v1alpha1.LabelTaskID]] = true
		}
		made[c.mustCreate(t, map[string]string{"scheduleTimeInSeconds": inAnHour()})] = true
	}
	var pages []map[string]any
	for page := 1; page <= 4; page++ {
		got := c.v2(t, "GET", map[string]string{"Action": "ListTasks", "pageNum": fmt.Sprint(page), "pageSize": "3"})
		if got["taskTotalCount"] != 8.0 {
			t.Fatalf("page %d: %v, want a total of 8", page, got)
		}
		for _, task := range got["tasks"].([]any) {
			pages = append(pages, task.(map[string]any))
		}
	}
	seen := map[string]bool{}
	for i, task := range pages {
		seen[task["id"].(string)] = true
		if i > 0 {
			// Of one second, the one with the greater ID comes first: pages need some order.
			before := pages[i-1]
			at, atBefore := task["createTime"].(float64), before["createTime"].(float64)
			if at > atBefore || at == atBefore && task["id"].(string) >= before["id"].(string) {
				t.Errorf("%v stands after %v", task, before)
			}
		}
		if keys := strings.Join(sortedKeys(task), ","); keys != "createTime,errMsg,id,productID,retCode,status,type,updateTime" {
			t.Errorf("a list tells %s", keys)
		}
	}
	if diff := cmp.Diff(made, seen); diff != "" || len(pages) != 8 {
		t.Errorf("%d tasks on four pages (-made +listed):\n%s", len(pages), diff)
	}
	all := c.v3(t, "DescribeTasks", `{"Offset":0,"Limit":250}`)
	var ids []any
	for _, task := range all["Tasks"].([]any) {
		ids = append(ids, task.(map[string]any)["Id"])
	}
	var want []any
	for _, task := range pages {
		want = append(want, task["id"])
	}
	if diff := cmp.Diff(want, ids); diff != "" || all["TotalCount"] != 8.0 {
		t.Errorf("V3 lists in another order, or not all (-V2 +V3):\n%s", diff)
	}
	if got := c.v3(t, "DescribeTasks", `{"Offset":6,"Limit":2}`); len(got["Tasks"].([]any)) != 2 {
		t.Errorf("the last two of eight tasks are %v", got)
	}
}

func sortedKeys(m map[string]any) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

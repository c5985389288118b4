package shim_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testobj"
	"batchtask.dev/operator/test/system"
)

const limitText = "（10005）等待和处理中的任务数过多"

// Fifty calls at once make exactly five tasks; all others are told why.
func TestLimit(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	check := system.NeverMoreThan(t, s, 5, &v1alpha1.TaskQuotaList{}, c.namespace, system.CountSlots)
	var mu sync.Mutex
	ids := map[string]bool{}
	var calls sync.WaitGroup
	for i := range 50 {
		calls.Go(func() {
			params := c.message(map[string]string{"scheduleTimeInSeconds": inAnHour()})
			if i%2 == 0 {
				answer := c.v2(t, "POST", params)
				mu.Lock()
				defer mu.Unlock()
				if id, ok := answer["taskId"].(string); ok {
					ids[id] = true
				} else if answer["message"] != limitText || answer["code"] != 4400.0 || answer["codeDesc"] != "PendingOrProcessingTasksExceedLimit" {
					t.Errorf("refused with %v", answer)
				}
				return
			}
			answer := c.v3(t, "CreateTask", fmt.Sprintf(`{"TaskType":"PublishMessage","ProductId":%q,"DeviceNameFilter":"^door","ScheduleTimeInSeconds":%s,
				"Tasks":{"PublishMessageTask":{"Topic":"event","Payload":"close"}}}`, c.productID, params["scheduleTimeInSeconds"]))
			mu.Lock()
			defer mu.Unlock()
			if id, ok := answer["TaskId"].(string); ok {
				ids[id] = true
			} else if e, ok := answer["Error"].(map[string]any); !ok || e["Code"] != "LimitExceeded.PengingOrProcessingTasksExceedLimit" || e["Message"] != "too many tasks are waiting or processing" {
				t.Errorf("refused with %v", answer)
			}
		})
	}
	calls.Wait()
	if tasks := c.tasks(t); len(ids) != 5 || len(tasks) != 5 {
		t.Errorf("%d calls succeeded and %d tasks exist, want 5", len(ids), len(tasks))
	}
	check()
}

// One limit holds over tasks made here, tasks that are applied, and dry runs.
func TestSharedLimit(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	later := time.Now().Add(time.Hour).Unix()
	object := func(name string) *v1alpha1.BatchTask {
		return testobj.BatchTask(name).In(c.namespace).Product(c.productID).Publish("event", "x").ScheduleAt(later).Obj()
	}
	limited := func(err error) bool { return err != nil && strings.Contains(err.Error(), "5 active tasks") }
	var ids []string
	for range 3 {
		ids = append(ids, c.mustCreate(t, map[string]string{"scheduleTimeInSeconds": fmt.Sprint(later)}))
	}
	for _, name := range []string{"a", "b"} {
		if err := f.Client.Create(t.Context(), object(name), client.DryRunAll); err != nil {
			t.Errorf("a dry run with room for it: %v", err)
		}
		if err := f.Client.Create(t.Context(), object(name)); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.v2(t, "POST", c.message(nil)); got["message"] != limitText {
		t.Errorf("the sixth is answered %v", got)
	}
	if err := f.Client.Create(t.Context(), object("c")); !limited(err) {
		t.Errorf("applying a sixth: %v", err)
	}
	if err := f.Client.Create(t.Context(), object("c"), client.DryRunAll); !limited(err) {
		t.Errorf("a dry run of a sixth: %v", err)
	}
	if got := c.v2(t, "POST", map[string]string{"Action": "CancelTask", "id": ids[0]}); got["code"] != 0.0 {
		t.Fatal(got)
	}
	system.WaitFor(t, "room for another", func() (bool, any) {
		err := f.Client.Create(t.Context(), object("c"))
		return err == nil, err
	})
	if got := c.v2(t, "POST", c.message(nil)); got["message"] != limitText {
		t.Errorf("with the place taken by an applied task, the next is answered %v", got)
	}
}

// Each SecretId has a rate of its own.
func TestRateLimit(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{rate: 0.001, burst: 12})
	c, other := f.newCaller(t), f.newCaller(t)
	var refused map[string]any
	for range 13 {
		if refused = c.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": "none"}); refused["code"] == 4400.0 {
			break
		}
	}
	if refused["code"] != 4400.0 || refused["codeDesc"] != "RequestLimitExceeded" {
		t.Errorf("after more calls than allowed the answer is %v", refused)
	}
	if got := c.v3(t, "DescribeTask", `{"Id":"none"}`); fmt.Sprint(got["Error"]) != "map[Code:RequestLimitExceeded Message:slow down]" {
		t.Errorf("in V3 the answer is %v", got)
	}
	if got := other.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": "none"}); got["code"] != 5000.0 {
		t.Errorf("another SecretId is answered %v", got)
	}
}

// No account reaches another's tasks, whatever it knows of them.
func TestAccountsApart(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c, other := f.newCaller(t), f.newCaller(t)
	id := c.mustCreate(t, map[string]string{"scheduleTimeInSeconds": inAnHour()})
	for _, action := range []string{"DescribeTask", "CancelTask"} {
		if got := other.v2(t, "POST", map[string]string{"Action": action, "id": id}); got["code"] != 5000.0 || !strings.HasPrefix(got["message"].(string), "（10001）任务不存在") {
			t.Errorf("%s of another account's task is answered %v", action, got)
		}
		got := other.v3(t, action, fmt.Sprintf(`{"Id":%q}`, id))
		if e, ok := got["Error"].(map[string]any); !ok || e["Code"] != "ResourceNotFound.TaskNotExist" {
			t.Errorf("%s of another account's task is answered %v", action, got)
		}
	}
	if got := other.v2(t, "POST", map[string]string{"Action": "ListTasks", "pageNum": "1", "pageSize": "250"}); got["taskTotalCount"] != 0.0 {
		t.Errorf("another account lists %v", got)
	}
	if got := other.v2(t, "POST", other.message(map[string]string{"productID": c.productID})); !strings.HasPrefix(got["message"].(string), "（10004）产品不存在") {
		t.Errorf("a task over another account's product is answered %v", got)
	}
	if object := c.object(t, id); object.Spec.Cancel {
		t.Error("another account has cancelled the task")
	}
}

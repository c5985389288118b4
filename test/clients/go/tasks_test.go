package clients

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common"
	iotcloud "github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/iotcloud/v20180614"
)

// awkward holds what one encoding or another gets wrong.
const awkward = ` 100% "a=b" & c+d; {} 门 @ é`

var taskID = regexp.MustCompile(`^[0-9a-f]{24}$`)

func TestTask(t *testing.T) {
	a := environment(t)
	for _, w := range ways {
		t.Run(w.String(), func(t *testing.T) { wholeLife(t, a, a.client(t, w), "go "+w.String()+awkward) })
	}
	for _, w := range []way{ways[0], ways[4]} {
		t.Run("unknowing "+w.String(), func(t *testing.T) {
			wholeLife(t, a, a.unknowing(t, w), "go unknowing "+w.String()+awkward)
		})
	}
}

// wholeLife creates a task, describes it until it is done, and lists it.
func wholeLife(t *testing.T, a account, c *iotcloud.Client, payload string) {
	began := uint64(time.Now().Unix())
	request := a.message("^door[^&=+ %]*$", payload)
	request.MaxExecutionTimeInSeconds = common.Uint64Ptr(600)
	id := create(t, c, request)
	if !taskID.MatchString(id) {
		t.Errorf("TaskId %q, want 24 hexadecimal digits", id)
	}
	answer := finish(t, c, id)
	got := answer.Response
	if *got.Status != 3 || *got.Percent != 100 || *got.AllDeviceCnt == 0 || *got.DoneDeviceCnt != *got.AllDeviceCnt || *got.RetCode != 0 || *got.ErrMsg != "" {
		t.Errorf("want a task that is done, and all of its devices: %s", answer.ToJsonString())
	}
	if *got.Type != "PublishMessage" || *got.Id != id || *got.ProductId != a.product || len(*got.RequestId) != 36 {
		t.Errorf("what the task is: %s", answer.ToJsonString())
	}
	for name, at := range map[string]*uint64{"CreateTime": got.CreateTime, "UpdateTime": got.UpdateTime, "DoneTime": got.DoneTime, "ScheduleTime": got.ScheduleTime} {
		if *at+5 < began || *at > began+120 {
			t.Errorf("%s %d, want about %d", name, *at, began)
		}
	}
	listed := list(t, c, 0, 250)
	if i := slices.IndexFunc(listed.Response.Tasks, func(task *iotcloud.TaskInfo) bool { return *task.Id == id }); i < 0 {
		t.Errorf("it is not in the list: %s", listed.ToJsonString())
	} else if task := listed.Response.Tasks[i]; *task.Status != 3 || *task.Type != "PublishMessage" || *task.ProductId != a.product || *task.CreateTime != *got.CreateTime {
		t.Errorf("in the list: %+v", task)
	}
}

func TestUpdateShadow(t *testing.T) {
	a := environment(t)
	for _, w := range ways {
		t.Run(w.String(), func(t *testing.T) {
			request := a.message("^door", "")
			request.TaskType = common.StringPtr("UpdateShadow")
			request.Tasks = &iotcloud.Task{UpdateShadowTask: &iotcloud.BatchUpdateShadow{
				Desired: common.StringPtr(`{"state":"open","said":"` + w.String() + ` 100% a=b&c+d 门"}`),
			}}
			c := a.client(t, w)
			answer := finish(t, c, create(t, c, request))
			if got := answer.Response; *got.Status != 3 || *got.Type != "UpdateShadow" || *got.DoneDeviceCnt == 0 {
				t.Errorf("want an UpdateShadow task that is done: %s", answer.ToJsonString())
			}
		})
	}
}

func TestCancel(t *testing.T) {
	a := environment(t)
	for _, w := range ways {
		t.Run(w.String(), func(t *testing.T) {
			c := a.client(t, w)
			request := a.later()
			id := create(t, c, request)
			answer, err := c.DescribeTask(describe(id))
			if err != nil {
				t.Fatal(err)
			}
			if got := answer.Response; *got.Status != 1 || *got.ScheduleTime != *request.ScheduleTimeInSeconds || *got.DoneTime != 0 {
				t.Errorf("want a task that waits until %d: %s", *request.ScheduleTimeInSeconds, answer.ToJsonString())
			}
			if _, err := c.CancelTask(cancel(id)); err != nil {
				t.Fatalf("CancelTask: %v", err)
			}
			if answer := finish(t, c, id); *answer.Response.Status != 5 {
				t.Errorf("want a task that is cancelled: %s", answer.ToJsonString())
			}
		})
	}
}

// Pages are cut from one list, newest first, by the second.
func TestPages(t *testing.T) {
	a := environment(t)
	c := a.client(t, ways[0])
	for i := range 3 {
		// Two equal calls with TC3 within a second are one.
		finish(t, c, create(t, c, a.message("^door", fmt.Sprint("page ", i))))
	}
	whole := list(t, c, 0, 250).Response
	if *whole.TotalCount != uint64(len(whole.Tasks)) {
		t.Errorf("%d tasks, and TotalCount is %d", len(whole.Tasks), *whole.TotalCount)
	}
	if !slices.IsSortedFunc(whole.Tasks, func(a, b *iotcloud.TaskInfo) int { return cmp.Compare(*b.CreateTime, *a.CreateTime) }) {
		t.Error("the list is not sorted, newest first")
	}
	for _, w := range ways {
		page := list(t, a.client(t, w), 1, 2).Response
		if len(page.Tasks) != 2 || *page.Tasks[0].Id != *whole.Tasks[1].Id || *page.Tasks[1].Id != *whole.Tasks[2].Id || *page.TotalCount != *whole.TotalCount {
			t.Errorf("%s: the second and third task of %d: %d tasks of %d", w, *whole.TotalCount, len(page.Tasks), *page.TotalCount)
		}
	}
}

func list(t *testing.T, c *iotcloud.Client, offset, limit uint64) *iotcloud.DescribeTasksResponse {
	t.Helper()
	r := iotcloud.NewDescribeTasksRequest()
	r.Offset, r.Limit = common.Uint64Ptr(offset), common.Uint64Ptr(limit)
	answer, err := c.DescribeTasks(r)
	if err != nil {
		t.Fatalf("DescribeTasks: %v", err)
	}
	return answer
}

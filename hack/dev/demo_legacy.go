package main

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// legacyExamples are the example requests of CreateTask, up to the common
// parameters, and the answers that stand there.
var legacyExamples = []struct {
	bar     string // what to call it
	task    string // the object that says the same
	request example
	answer  string
}{
	{
		"open, HTTP", "open-doors",
		`Action=CreateTask&taskType=UpdateShadow&deviceNameFilter=door$&scheduleTimeInSeconds=0&productID=ABCDE12345&tasks={"updateShadowTask":{"desired":"{\"state\":\"open\"}"}}`,
		`{"taskId":"5ad5aa513332ea4cb86e9ad5","message":"","codeDesc":"Success","code":0}`,
	},
	{
		"close, HTTP", "close-doors",
		`Action=CreateTask&taskType=PublishMessage&deviceNameFilter=^door&scheduleTimeInSeconds=0&productID=ABCDE12345&tasks={"publishMessageTask":{"payload":"close", "topic":"event"}}`,
		`{"taskId":"5ad5afbb3332ea4cb86e9ad8","message":"","codeDesc":"Success","code":0}`,
	},
}

// runLegacyExamples sends both examples, follows what becomes of them, and looks
// at what the devices received.
func (d *demo) runLegacyExamples(ctx context.Context) error {
	api := newLegacyAPI(d.env)
	started := time.Now()
	var ids []string
	for _, e := range legacyExamples {
		id, err := d.sendExample(ctx, api, e.request, e.answer)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	d.out.line("  %s", d.out.paint(dim, "Action=DescribeTask&id="+ids[0]+" and &id="+ids[1]+", until their status is 3"))
	if err := d.followLegacy(ctx, api, ids); err != nil {
		return err
	}
	d.out.good("both are Done after %.1f s", time.Since(started).Seconds())

	d.rounds++
	if err := d.receiveMessages(ctx); err != nil {
		return err
	}
	d.out.good("every device has the same %q a second time", "close")
	if err := d.checkSecondRound(ctx); err != nil {
		return err
	}
	return d.listLegacy(ctx, api, ids)
}

// sendExample creates a task and compares the answer with the documented one.
func (d *demo) sendExample(ctx context.Context, api *legacyAPI, request example, documented string) (id string, err error) {
	d.out.line("  %s\n  %s", d.out.paint(dim, "POST /v2/index.php"), d.out.paint(dim, string(request)+"&…"))
	answer, err := api.post(ctx, request)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(answer))
	d.out.line("  answered    %s\n  documented  %s", d.out.paint(cyan, text), documented)
	var got, want map[string]any
	if err := json.Unmarshal([]byte(documented), &want); err != nil {
		return "", err
	}
	if err := json.Unmarshal(answer, &got); err != nil {
		return "", fmt.Errorf("the answer is no JSON: %w", err)
	}
	id, _ = got["taskId"].(string)
	if !regexp.MustCompile(`^[0-9a-f]{24}$`).MatchString(id) {
		return "", fmt.Errorf("the answer %s has no taskId of 24 hexadecimal digits", text)
	}
	want["taskId"] = id
	if fmt.Sprint(got) != fmt.Sprint(want) { // maps are printed sorted
		return "", fmt.Errorf("the answer %s is not like the documented one", text)
	}
	return id, nil
}

// followLegacy draws the progress of the examples' tasks until both are done.
func (d *demo) followLegacy(ctx context.Context, api *legacyAPI, ids []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the tasks have not finished within %s", patience))
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	drawing := &bars{out: d.out}
	for {
		var now []bar
		finished := 0
		for i, e := range legacyExamples {
			var task legacyTask
			if err := api.call(ctx, example("Action=DescribeTask&id="+ids[i]), &task); err != nil {
				return orCause(ctx, err)
			}
			if task.Status > done {
				return fmt.Errorf("task %s is %s: %s", ids[i], task.phase(), task.ErrMsg)
			}
			if task.Status == done {
				finished++
				if want := int64(len(d.expected[e.task])); task.AllDeviceCnt != want || task.DoneDeviceCnt != want {
					return fmt.Errorf("task %s is done with %d of %d devices, want %d of %d", ids[i], task.DoneDeviceCnt, task.AllDeviceCnt, want, want)
				}
			}
			now = append(now, bar{name: e.bar, phase: task.phase(), done: task.DoneDeviceCnt, matched: task.AllDeviceCnt})
		}
		drawing.draw(now)
		if finished == len(ids) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// listLegacy shows all tasks of the account: the objects are among them.
func (d *demo) listLegacy(ctx context.Context, api *legacyAPI, ids []string) error {
	const request = example("Action=ListTasks&pageNum=1&pageSize=10")
	var list struct {
		Tasks []legacyTask `json:"tasks"`
		Total int          `json:"taskTotalCount"`
	}
	if err := api.call(ctx, request, &list); err != nil {
		return err
	}
	d.out.line("  %s", d.out.paint(dim, string(request)))
	missing := map[string]bool{}
	for _, id := range ids {
		missing[id] = true
	}
	for _, task := range list.Tasks {
		delete(missing, task.ID)
		d.out.line("  %s  %-14s  %d %s", task.ID, task.Type, task.Status, task.phase())
		if task.Status != done {
			return fmt.Errorf("ListTasks: task %s is %s, want it done", task.ID, task.phase())
		}
	}
	if list.Total != allTasks || len(list.Tasks) != allTasks || len(missing) > 0 {
		return fmt.Errorf("ListTasks has %d tasks of %d, want %d, with %v", len(list.Tasks), list.Total, allTasks, ids)
	}
	d.out.good("ListTasks has all %d: those of the objects and those of the calls", allTasks)
	return nil
}

// orCause returns why ctx ended, if it did.
func orCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

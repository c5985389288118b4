package main

import (
	"strings"
	"testing"
	"time"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/testobj"
)

// task makes a task of the product with two devices that succeeded and one that failed.
func (p *person) task(name string, phase v1alpha1.TaskPhase) *v1alpha1.BatchTask {
	p.t.Helper()
	task := testobj.BatchTask(name).In(p.namespace).Publish("event", "close").Obj()
	if err := p.env.Client.Create(p.t.Context(), task); err != nil {
		p.t.Fatal(err)
	}
	task.Status.Phase = phase
	task.Status.Devices = &v1alpha1.DeviceCounts{Matched: 3, Succeeded: 2, Failed: 1}
	task.Status.Failures = []v1alpha1.DeviceFailure{{DeviceName: "b", Reason: "PublishRejected", Message: "the broker\x1b[31m hung up"}}
	if err := p.env.Client.Status().Update(p.t.Context(), task); err != nil {
		p.t.Fatal(err)
	}
	return task
}

func TestTaskResults(t *testing.T) {
	p := newPerson(t)
	database := pgtest.Start(t).Database(t)
	p.product("door", testobj.ProductID, database)
	task := p.task("done", v1alpha1.TaskPhaseFailed)
	store, err := postgres.Open(t.Context(), postgres.Options{URL: database})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	product := fleet.Product{Namespace: p.namespace, ProductID: testobj.ProductID}
	run := fleet.ResultsRun{TaskUID: string(task.UID), Namespace: p.namespace, TaskName: task.Name, Epoch: "one", Sure: func() bool { return true }}
	if _, err := store.Results().Take(t.Context(), run, product, "", 0); err != nil {
		t.Fatal(err)
	}
	err = store.Results().Record(t.Context(), run.TaskUID, product, fleet.ResultRange{
		Succeeded: []string{"c", "a"}, At: time.UnixMilli(1_700_000_000_123), Epoch: run.Epoch,
		Failed: []fleet.Failure{{Name: "b", Reason: "PublishRejected", Message: "the broker\thung up, twice"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	const at = "2023-11-14T22:13:20.123Z"
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "DEVICE   RESULT      REASON            MESSAGE                      TIME\n" +
			"a        Succeeded                                                  " + at + "\n" +
			"b        Failed      PublishRejected   the broker hung up, twice   " + at + "\n" +
			"c        Succeeded                                                  " + at + "\n"},
		{[]string{"-o", "csv"}, "deviceName,result,reason,message,time\na,Succeeded,,," + at + "\nb,Failed,PublishRejected,\"the broker\thung up, twice\"," + at + "\nc,Succeeded,,," + at + "\n"},
		{[]string{"-o", "json", "--failed"}, `{"deviceName":"b","result":"Failed","reason":"PublishRejected","message":"the broker\thung up, twice","time":"` + at + `"}` + "\n"},
	} {
		out, notes, fault := p.call(t.Context(), nil, append([]string{"task", "results", "done"}, tt.args...)...)
		if strings.Join(strings.Fields(out), " ") != strings.Join(strings.Fields(tt.want), " ") || notes != "" || fault != "" {
			t.Errorf("%v: %s%s%swant\n%s", tt.args, out, notes, fault, tt.want)
		}
	}
	p.task("running", v1alpha1.TaskPhaseProcessing)
	if out, notes, fault := p.call(t.Context(), nil, "task", "results", "running", "-o", "csv"); fault != "" || strings.Count(out, "\n") != 1 || notes != "note: BatchTask \"running\" has not finished; these are the results so far\n" {
		t.Errorf("of a task that runs: %q, %q, %q", out, notes, fault)
	}
	if out, _, fault := p.call(t.Context(), nil, "task", "results", "gone", "-o", "csv"); out != "" || fault != `there is no BatchTask "gone" in namespace "`+p.namespace+`"; is it another namespace (-n)?` {
		t.Errorf("of a task that is not there: %q, %q; want nothing that looks like an empty list", out, fault)
	}
}

// Of devices that are objects the status is all there is, and it says so.
func TestTaskResultsOfObjects(t *testing.T) {
	p := newPerson(t)
	for _, product := range []string{"", "door"} {
		why := "there is no Product with the ID ABCDE12345 in namespace \"" + p.namespace + "\" any more"
		if product != "" {
			p.product(product, testobj.ProductID, "")
			why = "the devices of its product are Kubernetes objects"
		}
		name := "task" + product
		p.task(name, v1alpha1.TaskPhaseFailed)
		out, notes, fault := p.call(t.Context(), nil, "task", "results", name)
		if fields := strings.Fields(out); fault != "" || strings.Join(fields[5:], " ") != "b Failed PublishRejected the broker [31m hung up" {
			t.Errorf("%q, %q", out, fault)
		}
		if want := `note: of BatchTask "` + name + `" only the first failures are known, because ` + why + ": 1 of 1 that failed; 2 devices succeeded\n"; notes != want {
			t.Errorf("noted %q, want %q", notes, want)
		}
	}
}

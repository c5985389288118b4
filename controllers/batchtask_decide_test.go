package controllers

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/testobj"
)

const newID = "5ad5aa513332ea4cb86e9ad5"

var (
	created  = metav1.NewTime(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	start    = created.Add(time.Hour)
	deadline = start.Add(24 * time.Hour)

	readyProduct = productCondition{exists: true, ready: true}
	heldProduct  = productCondition{exists: true, message: `Product "p" is not Ready`}
	goneProduct  = productCondition{message: "the namespace has no such Product"}

	before, due = created.Add(time.Minute), start.Add(time.Second)
)

// inPhase is a task that is to start at start, as it is in that phase.
func inPhase(phase v1alpha1.TaskPhase) *testobj.BatchTaskBuilder {
	return testobj.BatchTask("task").Publish("event", "close").Created("uid", created).ScheduleAt(start.Unix()).Phase(phase).
		Change(func(task *v1alpha1.BatchTask) {
			at, started, until := metav1.NewTime(start), metav1.NewTime(start), metav1.NewTime(deadline)
			switch phase {
			case v1alpha1.TaskPhaseProcessing:
				task.Status.StartTime, task.Status.Deadline = &started, &until
				fallthrough
			case v1alpha1.TaskPhaseWaiting:
				task.Status.ScheduleTime, task.Status.TaskID = &at, newID
			default:
			}
		})
}

func progress(outcome executor.Outcome, matched, succeeded, failed int64) *executor.Progress {
	return &executor.Progress{Cursor: "m", Matched: matched, Succeeded: succeeded, Failed: failed, Outcome: outcome}
}

// lacking is the progress of a run that could not do all before it had to end.
func lacking(outcome executor.Outcome, matched, succeeded, failed int64) *executor.Progress {
	p := progress(outcome, matched, succeeded, failed)
	p.Lacking = "recording results: the database is away"
	return p
}

func TestDecide(t *testing.T) {
	phases := []v1alpha1.TaskPhase{"", v1alpha1.TaskPhaseWaiting, v1alpha1.TaskPhaseProcessing}
	type want struct {
		Phase   v1alpha1.TaskPhase
		Reason  string
		Action  action
		Event   string
		Also    string // the note of the event Scheduled that goes before it
		Warning bool
		Wake    time.Duration
		RetCode int32
		Kstatus status.Status
	}
	waiting := want{
		Phase: v1alpha1.TaskPhaseWaiting, Reason: v1alpha1.ReasonScheduled, Kstatus: status.InProgressStatus,
	}
	running := want{
		Phase: v1alpha1.TaskPhaseProcessing, Reason: v1alpha1.ReasonStarted, Action: actStart, Kstatus: status.InProgressStatus,
	}
	failed := func(reason string, retCode int32) want {
		return want{
			Phase: v1alpha1.TaskPhaseFailed, Reason: reason, Action: actForget, Event: v1alpha1.EventFailed, Warning: true,
			RetCode: retCode, Kstatus: status.FailedStatus,
		}
	}
	ended := func(phase v1alpha1.TaskPhase, reason string) want {
		return want{Phase: phase, Reason: reason, Action: actForget, Event: reason, Kstatus: status.CurrentStatus}
	}
	cancelled := ended(v1alpha1.TaskPhaseCancelled, v1alpha1.ReasonCancelled)
	with := func(w want, change func(*want)) want {
		change(&w)
		return w
	}

	type row struct {
		name string
		task *v1alpha1.BatchTask
		seen observation
		want want
	}
	var rows []row

	// What is wrong with a task before anything else is asked, in each phase,
	// cancelled or not.
	for _, phase := range phases {
		for _, cancel := range []bool{false, true} {
			task := inPhase(phase).Change(func(task *v1alpha1.BatchTask) { task.Spec.Cancel = cancel }).Obj()
			invalid := field.ErrorList{field.Required(field.NewPath("spec", "deviceNameFilter"), "must not be empty")}
			name := fmt.Sprintf("%q, cancel %v: ", phase, cancel)
			rows = append(rows,
				row{name + "invalid", task, observation{now: due, invalid: invalid, product: readyProduct}, failed(v1alpha1.ReasonInvalidSpec, 10002)},
				row{name + "invalid and no slot", task, observation{now: due, invalid: invalid, noSlot: errors.New("full")}, failed(v1alpha1.ReasonInvalidSpec, 10002)},
				row{name + "no slot", task, observation{now: due, noSlot: errors.New("full"), product: readyProduct}, failed(v1alpha1.ReasonQuotaExceeded, 10005)},
			)
		}
	}
	begun := func(w *want) { w.Event = v1alpha1.ReasonStarted }
	// A new task is Waiting first, unless it can start at once.
	for _, product := range []productCondition{readyProduct, heldProduct, goneProduct} {
		for _, cancel := range []bool{false, true} {
			for _, now := range []time.Time{before, start.Add(-time.Nanosecond), start, due} {
				if product.ready && !cancel && !now.Before(start) {
					rows = append(rows, row{
						fmt.Sprintf("new, can start at once, %v after creation", now.Sub(created.Time)), inPhase("").Obj(),
						observation{now: now, product: product},
						with(running, func(w *want) { begun(w); w.Also = "Starts at 2026-03-01T13:00:00Z" }),
					})
					continue
				}
				rows = append(rows, row{
					fmt.Sprintf("new, product %+v, cancel %v, %v after creation", product, cancel, now.Sub(created.Time)),
					inPhase("").Change(func(task *v1alpha1.BatchTask) { task.Spec.Cancel = cancel }).Obj(),
					observation{now: now, product: product},
					with(waiting, func(w *want) {
						w.Event, w.Wake = v1alpha1.ReasonScheduled, max(start.Sub(now), time.Nanosecond)
					}),
				})
			}
		}
	}
	for name, product := range map[string]productCondition{"ready": readyProduct, "held": heldProduct, "gone": goneProduct} {
		rows = append(rows,
			row{
				"waiting, not due, product " + name, inPhase(v1alpha1.TaskPhaseWaiting).Obj(),
				observation{now: before, product: product},
				with(waiting, func(w *want) { w.Wake = start.Sub(before) }),
			},
			row{"waiting, cancelled, product " + name, inPhase(v1alpha1.TaskPhaseWaiting).Cancel().Obj(), observation{now: before, product: product}, cancelled},
			row{"waiting, due and cancelled, product " + name, inPhase(v1alpha1.TaskPhaseWaiting).Cancel().Obj(), observation{now: due, product: product}, cancelled},
		)
	}
	held := with(running, func(w *want) { w.Reason, w.Action = v1alpha1.ReasonProductNotReady, actNothing })
	rows = append(rows,
		row{"due", inPhase(v1alpha1.TaskPhaseWaiting).Obj(), observation{now: due, product: readyProduct}, with(running, begun)},
		row{"due at this very moment", inPhase(v1alpha1.TaskPhaseWaiting).Obj(), observation{now: start, product: readyProduct}, with(running, begun)},
		row{
			"due, product held", inPhase(v1alpha1.TaskPhaseWaiting).Obj(),
			observation{now: due, product: heldProduct},
			with(held, func(w *want) { begun(w); w.Wake = 86401 * time.Second }),
		},
		row{"due, product gone", inPhase(v1alpha1.TaskPhaseWaiting).Obj(), observation{now: due, product: goneProduct}, failed(v1alpha1.ReasonProductNotFound, 10004)},
	)

	// A task that runs, by what its run says, its product and whether it is cancelled.
	type run struct {
		name      string
		progress  *executor.Progress
		want      want // with its product ready
		cancelled want
	}
	forgets := with(running, func(w *want) { w.Action, w.Wake = actForget, time.Nanosecond })
	done := ended(v1alpha1.TaskPhaseDone, v1alpha1.ReasonCompleted)
	noneMatched := with(ended(v1alpha1.TaskPhaseDone, v1alpha1.ReasonNoDeviceMatched), func(w *want) { w.Warning = true })
	devicesFailed, expired := failed(v1alpha1.ReasonDevicesFailed, 1), failed(v1alpha1.ReasonDeadlineExceeded, 1)
	unavailable, broken := failed(v1alpha1.ReasonFleetUnavailable, 1), failed(v1alpha1.ReasonInternalError, 1)
	for _, r := range []run{
		{"no run", nil, running, cancelled},
		{"a run", progress(executor.OutcomeNone, 10, 4, 1), running, with(running, func(w *want) { w.Action = actCancel })},
		{"served", progress(executor.OutcomeServed, 10, 10, 0), done, done},
		{"served none", progress(executor.OutcomeServed, 0, 0, 0), noneMatched, noneMatched},
		{"served with failures", progress(executor.OutcomeServed, 10, 9, 1), devicesFailed, devicesFailed},
		{"expired with failures", progress(executor.OutcomeExpired, 10, 9, 1), expired, expired},
		{"expired, all served in time", progress(executor.OutcomeExpired, 10, 10, 0), done, done},
		{"expired with none", progress(executor.OutcomeExpired, 0, 0, 0), noneMatched, noneMatched},
		{"expired while the fleet was away", lacking(executor.OutcomeExpired, 10, 9, 1), unavailable, unavailable},
		{"expired before the fleet was counted", lacking(executor.OutcomeExpired, 0, 0, 0), unavailable, unavailable},
		{"served, not recorded", lacking(executor.OutcomeServed, 10, 10, 0), done, done},
		{"cancelled while the fleet was away", lacking(executor.OutcomeCancelled, 10, 4, 1), cancelled, cancelled},
		{"broken", lacking(executor.OutcomeBroken, 10, 4, 6), broken, broken},
		{"ended as cancelled", progress(executor.OutcomeCancelled, 10, 4, 1), cancelled, cancelled},
		{"suspended", progress(executor.OutcomeSuspended, 10, 4, 1), forgets, forgets},
	} {
		late := deadline.Add(time.Second)
		for _, c := range []struct {
			name    string
			product productCondition
			now     time.Time
			held    bool
		}{
			{"product ready", readyProduct, due, false},
			{"product held", heldProduct, due, true},
			{"product gone", goneProduct, due, true},
			{"product held, after the deadline", heldProduct, late, false},
		} {
			wantRun, wantCancelled := r.want, r.cancelled
			if c.held && wantRun.Action == actStart {
				wantRun = with(held, func(w *want) { w.Wake = 86400 * time.Second })
				if r.progress != nil {
					wantRun.Action = actSuspend
				}
			}
			if r.name == "expired with none" && c.name == "product gone" { // nobody has counted them
				wantRun = failed(v1alpha1.ReasonProductNotFound, 10004)
				wantCancelled = wantRun
			}
			seen := observation{now: c.now, product: c.product, progress: r.progress}
			task := inPhase(v1alpha1.TaskPhaseProcessing).Change(func(task *v1alpha1.BatchTask) {
				task.Status.Conditions = startedConditions(task)
			})
			rows = append(rows,
				row{r.name + ", " + c.name, task.Obj(), seen, wantRun},
				row{r.name + ", cancelled, " + c.name, task.Cancel().Obj(), seen, wantCancelled})
		}
	}

	for _, tc := range rows {
		t.Run(tc.name, func(t *testing.T) {
			tc.seen.taskID = newID
			untouched := tc.task.DeepCopy()
			d := decide(tc.task, tc.seen)
			if diff := cmp.Diff(untouched, tc.task); diff != "" {
				t.Errorf("decide changed its input (-before +after):\n%s", diff)
			}
			after := tc.task.DeepCopy()
			after.Status = d.status
			got := want{
				Phase: d.status.Phase, Reason: readyReason(after), Action: d.action, Event: d.event, Also: d.scheduled, Warning: d.warning,
				Wake: d.wakeAfter, RetCode: d.status.RetCode, Kstatus: kstatusOf(t, after),
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			checkStatus(t, after, tc.seen)
		})
	}
}

// checkStatus checks what holds of every status.
func checkStatus(t *testing.T, task *v1alpha1.BatchTask, seen observation) {
	t.Helper()
	st := task.Status
	if st.ObservedGeneration != task.Generation {
		t.Errorf("observedGeneration is %d, want %d", st.ObservedGeneration, task.Generation)
	}
	if st.TaskID != newID {
		t.Errorf("taskID is %q, want %q", st.TaskID, newID)
	}
	if st.ScheduleTime == nil && seen.invalid == nil && seen.noSlot == nil {
		t.Errorf("phase %s without scheduleTime", st.Phase)
	}
	if st.Phase == v1alpha1.TaskPhaseProcessing && (st.StartTime == nil || st.Deadline == nil) {
		t.Errorf("phase %s with startTime %v and deadline %v", st.Phase, st.StartTime, st.Deadline)
	}
	if finished := st.Phase.Finished(); finished != (st.CompletionTime != nil) {
		t.Errorf("phase %s with completionTime %v", st.Phase, st.CompletionTime)
	} else if finished && st.Checkpoint != nil {
		t.Error("a finished task has a checkpoint")
	}
	if (st.ErrMsg != "") != (st.Phase == v1alpha1.TaskPhaseFailed) || (st.RetCode != 0) != (st.Phase == v1alpha1.TaskPhaseFailed) {
		t.Errorf("phase %s with errMsg %q and retCode %d", st.Phase, st.ErrMsg, st.RetCode)
	}
	if seen.progress != nil && seen.invalid == nil && seen.noSlot == nil {
		want := v1alpha1.DeviceCounts{Matched: seen.progress.Matched, Succeeded: seen.progress.Succeeded, Failed: seen.progress.Failed}
		if diff := cmp.Diff(want, st.Counts()); diff != "" {
			t.Errorf("devices (-want +got):\n%s", diff)
		}
	}
	// Only the end tells whether there are no devices or they have not been counted.
	known := seen.progress != nil && seen.invalid == nil && seen.noSlot == nil && (seen.progress.Matched > 0 || st.Phase == v1alpha1.TaskPhaseDone)
	if known != (st.Devices != nil) {
		t.Errorf("phase %s with devices %v after %+v", st.Phase, st.Devices, seen.progress)
	}
	for _, c := range st.Conditions {
		if c.ObservedGeneration != task.Generation || c.LastTransitionTime.IsZero() || c.Reason == "" {
			t.Errorf("condition %+v lacks something", c)
		}
	}
	if len(st.Conditions) != len(conditionTypes) {
		t.Errorf("%d conditions, want %d", len(st.Conditions), len(conditionTypes))
	}
}

func startedConditions(task *v1alpha1.BatchTask) []metav1.Condition {
	d := decision{}
	d.setInProgress(task, observation{now: start}, v1alpha1.ReasonStarted, "Serving")
	return d.status.Conditions
}

func kstatusOf(t *testing.T, task *v1alpha1.BatchTask) status.Status {
	t.Helper()
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(task)
	if err != nil {
		t.Fatal(err)
	}
	result, err := status.Compute(&unstructured.Unstructured{Object: content})
	if err != nil {
		t.Fatalf("kstatus: %v", err)
	}
	return result.Status
}

// That a run has begun and come nowhere yet is no news.
func TestNothingToWriteForAFreshRun(t *testing.T) {
	task := inPhase(v1alpha1.TaskPhaseWaiting).Obj()
	task.Status = decide(task, observation{now: due, product: readyProduct}).status
	d := decide(task, observation{now: due, product: readyProduct, progress: &executor.Progress{}})
	if diff := cmp.Diff(task.Status, d.status); diff != "" {
		t.Errorf("the status changes (-before +after):\n%s", diff)
	}
	d = decide(task, observation{now: due, product: readyProduct, progress: progress(executor.OutcomeNone, 10, 4, 1)})
	if d.status.Checkpoint == nil || d.status.Checkpoint.Cursor != "m" {
		t.Errorf("the checkpoint is %+v, want m", d.status.Checkpoint)
	}
}

// The conditions say the same to kubectl wait as to kstatus.
func TestConditionsOfFinishedTasks(t *testing.T) {
	for _, tc := range []struct {
		name     string
		progress *executor.Progress
		want     map[string]metav1.ConditionStatus
	}{
		{"Done", progress(executor.OutcomeServed, 3, 3, 0), map[string]metav1.ConditionStatus{
			"Ready": "True", "Reconciling": "False", "Stalled": "False", "Complete": "True", "Failed": "False",
		}},
		{"Failed", progress(executor.OutcomeServed, 3, 2, 1), map[string]metav1.ConditionStatus{
			"Ready": "False", "Reconciling": "False", "Stalled": "True", "Complete": "False", "Failed": "True",
		}},
		{"Cancelled", progress(executor.OutcomeCancelled, 3, 2, 1), map[string]metav1.ConditionStatus{
			"Ready": "True", "Reconciling": "False", "Stalled": "False", "Complete": "False", "Failed": "False",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := decide(inPhase(v1alpha1.TaskPhaseProcessing).Obj(), observation{now: due, taskID: newID, product: readyProduct, progress: tc.progress})
			got := map[string]metav1.ConditionStatus{}
			for _, c := range d.status.Conditions {
				got[c.Type] = c.Status
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("conditions (-want +got):\n%s", diff)
			}
		})
	}
}

func TestClaim(t *testing.T) {
	later := metav1.NewTime(created.Add(time.Hour))
	a := testobj.Product("a").In("one").Created("a", created)
	b := testobj.Product("b").In("one").Created("b", later)
	isReady := func(p *testobj.ProductBuilder) v1alpha1.Product {
		q := p.Obj()
		q.Status.Conditions = testobj.Product("").Ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady).Obj().Status.Conditions
		return *q
	}
	for _, tc := range []struct {
		name        string
		of          *v1alpha1.Product
		all         []v1alpha1.Product
		wantReason  string
		wantMessage string
	}{
		{"alone", a.Obj(), []v1alpha1.Product{*a.Obj()}, v1alpha1.ReasonProductReady, "Tasks may run on this product"},
		{"the older", a.Obj(), []v1alpha1.Product{*b.Obj(), *a.Obj()}, v1alpha1.ReasonProductReady, "Tasks may run on this product"},
		{
			"the later, of the same namespace", testobj.Product("b").In("one").Created("b", later).Obj(),
			[]v1alpha1.Product{*a.Obj(), *testobj.Product("b").In("one").Created("b", later).Obj()},
			v1alpha1.ReasonProductIDConflict,
			`spec.productID: "ABCDE12345" belongs to Product "a", which is older. Choose another ID; this product takes over when that one is free.`,
		},
		{
			"the older, while the later is still Ready", a.Obj(),
			[]v1alpha1.Product{isReady(b), *a.Obj()},
			v1alpha1.ReasonProductIDConflict,
			`spec.productID: "ABCDE12345" is being handed over from the younger Product "b". Choose another ID; this product takes over when that one is free.`,
		},
		{"of one second, the smaller UID", testobj.Product("b").Created("a", created).Obj(), []v1alpha1.Product{
			*testobj.Product("a").Created("b", created).Obj(), *testobj.Product("b").Created("a", created).Obj(),
		}, v1alpha1.ReasonProductReady, "Tasks may run on this product"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := inNamespace(tc.of, tc.all)
			if got.Reason != tc.wantReason || got.Message != tc.wantMessage {
				t.Errorf("it says %s: %s\nwant %s: %s", got.Reason, got.Message, tc.wantReason, tc.wantMessage)
			}
			if isTrue := got.Status == metav1.ConditionTrue; isTrue != (tc.wantReason == v1alpha1.ReasonProductReady) {
				t.Errorf("status is %s", got.Status)
			}
		})
	}
}

func TestEventNote(t *testing.T) {
	long := ""
	for range 400 {
		long += "门"
	}
	got := eventNote(long)
	if len(got) > maxEventNote {
		t.Errorf("the note has %d bytes, the API server takes %d", len(got), maxEventNote)
	}
	if want := long[:1020] + "…"; got != want {
		t.Errorf("the note is cut to %q", got)
	}
	if got := eventNote("short"); got != "short" {
		t.Errorf("a short note became %q", got)
	}
}

package controllers

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/clock"
	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/lease"
)

const own = "own"

// newLeader is a reconciler of a process that holds its Lease, with a task that is there
// as status says, and as its cache shows it.
func newLeader(t *testing.T, status v1alpha1.BatchTaskStatus) *behind {
	t.Helper()
	b := newBehind(t)
	b.Lease = lease.Sole(own)
	b.Stop = func(err error) { t.Errorf("the process is to end: %v", err) }
	b.reserve(t)
	labelled := b.stored(t)
	labelled.Labels = map[string]string{v1alpha1.LabelTaskID: newID} // as the webhook does
	if err := b.env.Client.Update(t.Context(), labelled); err != nil {
		t.Fatal(err)
	}
	b.store(t, func(stored *v1alpha1.BatchTaskStatus) { *stored = status })
	b.follow(t)
	return b
}

// store changes the status as others do.
func (b *behind) store(t *testing.T, change func(*v1alpha1.BatchTaskStatus)) {
	t.Helper()
	task := b.stored(t)
	change(&task.Status)
	if err := b.env.Client.Status().Update(t.Context(), task); err != nil {
		t.Fatal(err)
	}
}

func (b *behind) stored(t *testing.T) *v1alpha1.BatchTask {
	t.Helper()
	task := &v1alpha1.BatchTask{}
	if err := b.env.Client.Get(t.Context(), client.ObjectKeyFromObject(b.task), task); err != nil {
		t.Fatal(err)
	}
	return task
}

// follow lets the cache show what is there.
func (b *behind) follow(t *testing.T) { b.task = b.stored(t) }

func (b *behind) name() types.NamespacedName { return client.ObjectKeyFromObject(b.task) }

func processing(epoch string, sequence, succeeded int64) v1alpha1.BatchTaskStatus {
	status := inPhase(v1alpha1.TaskPhaseProcessing).Obj().Status
	until := status.Deadline.DeepCopy()
	until.Time = time.Now().Add(time.Hour)
	status.Deadline = until
	status.Devices = &v1alpha1.DeviceCounts{Matched: 100, Succeeded: succeeded}
	status.Checkpoint = &v1alpha1.Checkpoint{Cursor: fmt.Sprintf("device-%03d", succeeded), Epoch: epoch, Sequence: sequence}
	return status
}

func at(succeeded int64, outcome executor.Outcome) executor.Progress {
	return executor.Progress{Cursor: fmt.Sprintf("device-%03d", succeeded), Matched: 100, Succeeded: succeeded, Outcome: outcome}
}

func (b *behind) wantStored(t *testing.T, epoch string, sequence, succeeded int64) {
	t.Helper()
	task := b.stored(t)
	c := task.Status.Checkpoint
	if c == nil || c.Epoch != epoch || c.Sequence != sequence || task.Status.Counts().Succeeded != succeeded {
		t.Errorf("stored are %+v and %d succeeded; want epoch %q, sequence %d, %d succeeded", c, task.Status.Counts().Succeeded, epoch, sequence, succeeded)
	}
}

// A task is begun with the write that signs it, and taken over from another leader with
// one that does nothing else.
func TestEpochIsWrittenFirst(t *testing.T) {
	b := newBehind(t)
	b.Lease = lease.Sole(own)
	b.reserve(t)
	b.look(t)
	b.wantStored(t, own, 1, 0)

	b = newLeader(t, processing("another", 7, 30))
	b.look(t)
	b.wantStored(t, own, 8, 30)
	runs := b.executor.Runs(b.task.UID)
	if len(runs) != 1 || runs[0].After != "device-030" || runs[0].Hold.Epoch() != own {
		t.Errorf("runs: %+v", runs)
	}
	// Its own task it goes on with as it is.
	b.executor.Forget(b.name())
	b.look(t)
	b.wantStored(t, own, 8, 30)
	if runs := b.executor.Runs(b.task.UID); len(runs) != 2 {
		t.Errorf("runs: %+v", runs)
	}
}

// A process that does not surely hold its Lease begins nothing, and ends nothing that it
// does not run.
func TestNothingBeginsInDoubt(t *testing.T) {
	for name, cancel := range map[string]bool{"to run": false, "to cancel": true} {
		t.Run(name, func(t *testing.T) {
			b := newLeader(t, processing("another", 7, 30))
			b.Lease = lease.Elected("host", 10*time.Second, clock.RealClock{})
			if cancel {
				b.task.Spec.Cancel = true
			}
			reads := b.reads
			if result := b.look(t); result.RequeueAfter <= 0 {
				t.Error("it is not looked at again")
			}
			b.wantStored(t, "another", 7, 30)
			if runs := b.executor.Runs(b.task.UID); len(runs) != 0 || b.reads != reads {
				t.Errorf("runs: %+v, live reads: %d", runs, b.reads-reads)
			}
		})
	}
}

// Another leader has taken the task over, which the cache shows or does not show: the run
// ends, whatever it has counted, and is not begun again for a while.
func TestForeignEpochEndsTheRun(t *testing.T) {
	for _, outcome := range []executor.Outcome{executor.OutcomeNone, executor.OutcomeServed, executor.OutcomeSuspended} {
		for _, seen := range []bool{false, true} {
			t.Run(fmt.Sprintf("outcome %q, cache %v", outcome, seen), func(t *testing.T) {
				b := newLeader(t, processing(own, 7, 30))
				clk := testingclock.NewFakePassiveClock(time.Now())
				b.Clock = clk
				b.look(t)
				b.store(t, func(s *v1alpha1.BatchTaskStatus) { *s = processing("another", 20, 50) })
				if seen {
					b.follow(t)
				}
				b.executor.Set(b.name(), at(40, outcome))
				b.look(t)
				b.wantStored(t, "another", 20, 50)
				if b.executor.Working(b.task.UID) {
					t.Error("the run goes on")
				}
				b.look(t)
				b.wantStored(t, "another", 20, 50)
				// It may be that the other did not hold the Lease.
				clk.SetTime(clk.Now().Add(time.Minute))
				b.follow(t)
				b.look(t)
				b.wantStored(t, own, 21, 50)
			})
		}
	}
}

// A checkpoint without an epoch is not ours either.
func TestEpochThatIsGoneEndsTheRun(t *testing.T) {
	b := newLeader(t, processing(own, 7, 30))
	b.look(t)
	b.store(t, func(s *v1alpha1.BatchTaskStatus) {
		s.Checkpoint = &v1alpha1.Checkpoint{Cursor: "device-010", Sequence: 20}
	})
	b.executor.Set(b.name(), at(40, executor.OutcomeNone))
	b.look(t)
	b.wantStored(t, "", 20, 30)
	if b.executor.Working(b.task.UID) {
		t.Error("the run goes on")
	}
}

// The answer to a write is lost, and the write was carried out: what is there is ours, and
// the run goes on.
func TestLostAnswer(t *testing.T) {
	b := newLeader(t, processing(own, 7, 30))
	real := b.Client
	lose := false
	b.Client = interceptor.NewClient(b.env.Client, interceptor.Funcs{
		Get: func(ctx context.Context, _ client.WithWatch, name client.ObjectKey, object client.Object, options ...client.GetOption) error {
			return real.Get(ctx, name, object, options...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, object client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
			err := c.SubResource(sub).Patch(ctx, object, patch, options...)
			if lose && err == nil {
				lose = false
				return errors.New("the connection is lost")
			}
			return err
		},
	})
	b.look(t)
	lose = true
	b.executor.Set(b.name(), at(40, executor.OutcomeNone))
	if _, err := b.Reconcile(t.Context(), requestOf(b.task)); err == nil {
		t.Fatal("the answer was not lost")
	}
	b.executor.Set(b.name(), at(60, executor.OutcomeServed))
	b.look(t) // is refused and judged
	if !b.executor.Working(b.task.UID) {
		t.Fatal("the run has ended, though what is there is its own")
	}
	b.wantStored(t, own, 9, 40)
	b.look(t)
	if task := b.stored(t); task.Status.Phase != v1alpha1.TaskPhaseDone || task.Status.Counts().Succeeded != 60 {
		t.Errorf("the task is %+v", task.Status)
	}
}

// Where the API server does not keep the epoch, the process ends and says why.
func TestResourcesOlderThanTheProgram(t *testing.T) {
	b := newLeader(t, processing("", 0, 30))
	var stopped error
	b.Stop = func(err error) { stopped = err }
	real := b.Client
	b.Client = interceptor.NewClient(b.env.Client, interceptor.Funcs{
		Get: func(ctx context.Context, _ client.WithWatch, name client.ObjectKey, object client.Object, options ...client.GetOption) error {
			return real.Get(ctx, name, object, options...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, object client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
			err := c.SubResource(sub).Patch(ctx, object, patch, options...)
			object.(*v1alpha1.BatchTask).Status.Checkpoint.Epoch = "" // as a schema without the field prunes it
			return err
		},
	})
	_, err := b.Reconcile(t.Context(), requestOf(b.task))
	if !errors.Is(err, errOldResources) || !errors.Is(stopped, errOldResources) {
		t.Errorf("error %v, stopped with %v", err, stopped)
	}
	if runs := b.executor.Runs(b.task.UID); len(runs) != 0 {
		t.Errorf("runs: %+v", runs)
	}
}

// A program that does not know the epoch leaves it as it is, since a patch names what it
// changes. It cannot write progress, nor an end.
func TestOlderProgramIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		patch   string
		refused bool
	}{
		"progress":         {`{"status":{"checkpoint":{"cursor":"device-040"},"devices":{"succeeded":40}}}`, true},
		"counts alone":     {`{"status":{"devices":{"failed":1}}}`, true},
		"end":              {`{"status":{"phase":"Done","checkpoint":null,"devices":{"succeeded":100}}}`, true},
		"end as it was":    {`{"status":{"phase":"Cancelled"}}`, true},
		"no checkpoint":    {`{"status":{"checkpoint":null}}`, true},
		"acknowledgements": {`{"status":{"devices":{"acknowledged":20}}}`, false},
		"conditions":       {`{"status":{"conditions":[]}}`, false},
		"owner's progress": {`{"status":{"checkpoint":{"cursor":"device-040","sequence":8},"devices":{"succeeded":40}}}`, false},
		"owner's end":      {`{"status":{"phase":"Done","checkpoint":{"cursor":"","epoch":null,"sequence":8},"devices":{"succeeded":100}}}`, false},
		"lower sequence":   {`{"status":{"checkpoint":{"cursor":"device-040","sequence":6}}}`, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newLeader(t, processing("another", 7, 30))
			err := b.env.Client.Status().Patch(t.Context(), b.stored(t), client.RawPatch(types.MergePatchType, []byte(tc.patch)))
			if apierrors.IsInvalid(err) != tc.refused || err != nil && !tc.refused {
				t.Errorf("refused: %v, want %v", err, tc.refused)
			}
		})
	}
}

// Nothing ends while devices are served, also where the spec has become invalid.
func TestRunEndsBeforeItsTask(t *testing.T) {
	task := inPhase(v1alpha1.TaskPhaseProcessing).Obj()
	hold, _ := lease.Sole(own).Hold()
	seen := observation{
		now: due, product: readyProduct, hold: hold, sure: true, progress: progress(executor.OutcomeNone, 5, 3, 0),
		invalid: field.ErrorList{field.Required(field.NewPath("spec", "deviceNameFilter"), "must not be empty")},
	}
	d := decide(task, seen)
	if d.action != actCancel || d.status.Phase != v1alpha1.TaskPhaseProcessing || d.status.Counts().Succeeded != 3 {
		t.Fatalf("action %q, status %+v", d.action, d.status)
	}
	task.Status = d.status
	seen.progress = progress(executor.OutcomeCancelled, 5, 4, 0)
	d = decide(task, seen)
	if d.status.Phase != v1alpha1.TaskPhaseFailed || d.status.RetCode != retCodeInvalid || d.status.Counts().Succeeded != 4 {
		t.Errorf("status %+v", d.status)
	}
	if c := d.status.Checkpoint; c == nil || c.Epoch != "" || c.Sequence != task.Status.Checkpoint.Sequence+1 {
		t.Errorf("the last write is signed with %+v", c)
	}
}

func requestOf(task *v1alpha1.BatchTask) reconcile.Request {
	return reconcile.Request{NamespacedName: client.ObjectKeyFromObject(task)}
}

package quota

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testenv"
)

// Somebody who can reach the webhook has slots reserved for tasks that never come, as
// often as there is room, at any speed. The owner of the namespace gets each slot that
// no task of his own holds, except within the first seconds.
func TestForgedReservations(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	clk := clocktesting.NewFakePassiveClock(time.Now().Truncate(time.Second))
	ledger := NewLedger(env.Client, env.Client, clk)
	if err := ledger.Ensure(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	forged := 0
	forge := func() (held int) {
		t.Helper()
		for range 10 {
			forged++
			err := ledger.Reserve(t.Context(), Holder{UID: types.UID(fmt.Sprint("forged-", forged)), Namespace: namespace, Name: fmt.Sprint("none-", forged)})
			var limit *LimitError
			if err != nil && !errors.As(err, &limit) {
				t.Fatal(err)
			}
		}
		for _, slot := range read(t, env, namespace).Status.Slots {
			if !slot.Bound {
				held++
			}
		}
		return held
	}
	if held := forge(); held != 5 {
		t.Fatalf("forged reviews hold %d slots, want all 5: the test shows nothing", held)
	}
	// Each second: the forger first, and then the owner, with a task that lasts.
	var limit *LimitError
	own := 0
	for second := 1; second <= 30; second++ {
		clk.SetTime(clk.Now().Add(time.Second))
		forge()
		if own == 5 {
			break
		}
		if err := ledger.Check(t.Context(), namespace); err != nil {
			if second > 3*4+1 { // after four rounds nobody is trusted any more
				t.Errorf("second %d: a dry run says %v", second, err)
			}
			continue
		}
		name := fmt.Sprint("own-", own)
		holds := holder(namespace, name)
		if err := ledger.Reserve(t.Context(), holds); err != nil {
			t.Errorf("second %d: the owner's create is refused though a dry run was not: %v", second, err)
			continue
		}
		task := createTask(t, env, namespace, name, "")
		if held, err := ledger.Confirm(t.Context(), holds); err != nil {
			t.Fatal(err)
		} else if !held {
			holds.UID = task.UID
			if err := ledger.Bind(t.Context(), holds); err != nil {
				t.Errorf("second %d: the owner's task gets no slot: %v", second, err)
				continue
			}
		}
		own++
	}
	if own != 5 {
		t.Errorf("the owner has %d tasks running, want 5: %s", own, slotsOf(read(t, env, namespace)))
	}
	// The tasks that exist are safe from it all, and the limit holds.
	clk.SetTime(clk.Now().Add(time.Hour))
	forge()
	if err := ledger.Reserve(t.Context(), holder(namespace, "sixth")); !errors.As(err, &limit) {
		t.Errorf("a sixth task: %v, want a LimitError", err)
	}
	if quota := read(t, env, namespace); len(quota.Status.Slots) != 5 || slotsBound(quota) != 5 {
		t.Errorf("in the end the slots are %s", slotsOf(quota))
	}
}

func slotsBound(q *v1alpha1.TaskQuota) (n int) {
	for _, slot := range q.Status.Slots {
		if slot.Bound {
			n++
		}
	}
	return n
}

// Reservations that tasks follow are made at any rate.
func TestReservationsThatAreMet(t *testing.T) {
	var r reservations
	now := time.Now()
	for i := range 1000 {
		task := holder("a", fmt.Sprint(i))
		if !r.trusted("a", 5, now) {
			t.Fatalf("reservation %d is not made", i)
		}
		r.made(task, now)
		r.met(&v1alpha1.TaskQuota{Status: v1alpha1.TaskQuotaStatus{Slots: []v1alpha1.TaskSlot{{UID: task.UID, Bound: true}}}})
		quota := &v1alpha1.TaskQuota{Status: v1alpha1.TaskQuotaStatus{Slots: []v1alpha1.TaskSlot{{UID: task.UID, Bound: true}}}}
		quota.Namespace = "a"
		r.met(quota)
	}
	if len(r.namespaces) != 0 {
		t.Errorf("%d namespaces are remembered", len(r.namespaces))
	}
	for i := range unmet {
		if !r.trusted("a", 5, now) {
			t.Fatalf("reservation %d is not made", i)
		}
		r.made(holder("a", fmt.Sprint("lost-", i)), now)
	}
	if r.trusted("a", 5, now) || !r.trusted("b", 5, now) || !r.trusted("a", 1000, now) {
		t.Error("too many came to nothing: want no more in this namespace, but in others, and where more tasks may be active")
	}
	if !r.trusted("a", 5, now.Add(unmetPeriod)) || len(r.namespaces) != 0 {
		t.Error("after a while reservations are not made again, or the old ones are remembered")
	}
}

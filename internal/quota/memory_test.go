package quota

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testenv"
)

// calls counts what a ledger asks of the API server.
type calls struct{ reads, writes atomic.Int64 }

func (c *calls) String() string {
	return fmt.Sprintf("%d reads, %d writes", c.reads.Swap(0), c.writes.Swap(0))
}

// counted is a ledger whose calls are counted.
func counted(env *testenv.Env, clk clock.PassiveClock) (*Ledger, *calls) {
	count := &calls{}
	c := interceptor.NewClient(env.Client, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, name client.ObjectKey, object client.Object, options ...client.GetOption) error {
			count.reads.Add(1)
			return c.Get(ctx, name, object, options...)
		},
		SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, object client.Object, options ...client.SubResourceUpdateOption) error {
			count.writes.Add(1)
			return c.SubResource(sub).Update(ctx, object, options...)
		},
	})
	return NewLedger(c, c, clk), count
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// All that a task asks of the ledger is three writes.
func TestThreeWritesATask(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	ledger, count := counted(env, clock.RealClock{})
	must(t, ledger.Ensure(t.Context(), namespace))
	_ = count.String()
	for i := range 3 {
		task := holder(namespace, fmt.Sprint("task-", i))
		must(t, ledger.Reserve(t.Context(), task))
		if held, err := ledger.Confirm(t.Context(), task); err != nil || !held {
			t.Fatalf("Confirm of a slot that was reserved: %v, %v", held, err)
		}
		must(t, ledger.Release(t.Context(), namespace, task.UID))
		if got := count.String(); got != "0 reads, 3 writes" {
			t.Errorf("task %d took %s, want none and 3", i, got)
		}
	}
}

// What a ledger remembers is not what is: another process has changed it since.
// Nothing that leads to no write may rest on that.
func TestRemembersAnOldState(t *testing.T) {
	env := testenv.Start(t)
	var limit *LimitError
	for _, tc := range []struct {
		name        string
		first       []string // what the ledger has written last
		take, leave []string // by another process after it
		do          func(ctx context.Context, ledger *Ledger, namespace string) error
		want        string
		refused     bool
	}{
		{
			name: "full, and one has left", first: []string{"a", "b", "c", "d", "e"}, leave: []string{"a"},
			do:   func(ctx context.Context, l *Ledger, ns string) error { return l.Reserve(ctx, holder(ns, "f")) },
			want: "b:false c:false d:false e:false f:false",
		},
		{
			name: "one free, and it has been taken", first: []string{"a", "b", "c", "d"}, take: []string{"e"},
			do:   func(ctx context.Context, l *Ledger, ns string) error { return l.Reserve(ctx, holder(ns, "f")) },
			want: "a:false b:false c:false d:false e:false", refused: true,
		},
		{
			name: "one free, and it has been taken, at the gate", first: []string{"a", "b", "c", "d"}, take: []string{"e"},
			do:   func(ctx context.Context, l *Ledger, ns string) error { return l.Bind(ctx, holder(ns, "f")) },
			want: "a:false b:false c:false d:false e:false", refused: true,
		},
		{
			name: "held, and reaped", first: []string{"a"}, leave: []string{"a"},
			do:   func(ctx context.Context, l *Ledger, ns string) error { return l.Reserve(ctx, holder(ns, "a")) },
			want: "a:false",
		},
		{
			name: "not held, and reserved elsewhere", first: []string{"a"}, take: []string{"b"},
			do:   func(ctx context.Context, l *Ledger, ns string) error { return confirm(ctx, l, holder(ns, "b"), true) },
			want: "a:false b:true",
		},
		{
			name: "held, and reaped, at the gate", first: []string{"a"}, leave: []string{"a"},
			do:   func(ctx context.Context, l *Ledger, ns string) error { return confirm(ctx, l, holder(ns, "a"), false) },
			want: "",
		},
		{
			name: "nothing to free, and taken elsewhere", first: []string{"a"}, take: []string{"b"},
			do:   func(ctx context.Context, l *Ledger, ns string) error { return l.Release(ctx, ns, "uid-b") },
			want: "a:false",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			namespace := env.Namespace(t)
			ledger, other := NewLedger(env.Client, env.Client, clock.RealClock{}), NewLedger(env.Client, env.Client, clock.RealClock{})
			for _, name := range tc.first {
				must(t, ledger.Reserve(t.Context(), holder(namespace, name)))
			}
			for _, name := range tc.take {
				must(t, other.Reserve(t.Context(), holder(namespace, name)))
			}
			for _, name := range tc.leave {
				must(t, other.Release(t.Context(), namespace, holder(namespace, name).UID))
			}
			if err := tc.do(t.Context(), ledger, namespace); errors.As(err, &limit) != tc.refused || (err != nil) != tc.refused {
				t.Errorf("error %v, want a refusal: %v", err, tc.refused)
			}
			if diff := cmp.Diff(tc.want, slotsOf(read(t, env, namespace))); diff != "" {
				t.Errorf("slots (-want +got):\n%s", diff)
			}
		})
	}
}

func confirm(ctx context.Context, l *Ledger, task Holder, want bool) error {
	held, err := l.Confirm(ctx, task)
	if err == nil && held != want {
		err = fmt.Errorf("task %s holds a slot: %v, want %v", task.Name, held, want)
	}
	return err
}

// A ledger that was told what another has written is not refused for it, and one
// that was told of an old state keeps the newer one. One that has been deleted is
// made anew.
func TestWatching(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	ledger, count := counted(env, clock.RealClock{})
	other := NewLedger(env.Client, env.Client, clock.RealClock{})
	must(t, ledger.Reserve(t.Context(), holder(namespace, "a")))
	old := read(t, env, namespace)
	must(t, other.Reserve(t.Context(), holder(namespace, "b")))
	_ = count.String()

	ledger.Watching().OnUpdate(old, read(t, env, namespace))
	ledger.Watching().OnUpdate(old, old)
	must(t, ledger.Reserve(t.Context(), holder(namespace, "c")))
	if got := count.String(); got != "0 reads, 1 writes" {
		t.Errorf("after it was told: %s, want none and 1", got)
	}
	if err := env.Client.Delete(t.Context(), read(t, env, namespace)); err != nil {
		t.Fatal(err)
	}
	ledger.Watching().OnDelete(old)
	must(t, ledger.Reserve(t.Context(), holder(namespace, "d")))
	if got := count.String(); got != "1 reads, 1 writes" {
		t.Errorf("after it was deleted: %s, want 1 and 1", got)
	}
	if got := slotsOf(read(t, env, namespace)); got != "d:false" {
		t.Errorf("the slots are %q", got)
	}
}

// A slot within its grace time costs no read of its task at each change.
func TestReapReadsNothingWithinTheGrace(t *testing.T) {
	env := testenv.Start(t)
	clk := clocktesting.NewFakePassiveClock(time.Now())
	ledger, count := counted(env, clk)
	quota := &v1alpha1.TaskQuota{Status: v1alpha1.TaskQuotaStatus{Slots: []v1alpha1.TaskSlot{
		{UID: types.UID("uid-a"), Name: "a", ReservedAt: metav1.NewTime(clk.Now().Add(-4 * time.Second))},
	}}}
	quota.Namespace = env.Namespace(t)
	next, err := ledger.Reap(t.Context(), quota, 5*time.Second, nobodyWorks)
	if err != nil || next != time.Second {
		t.Errorf("Reap: look again after %v (error %v), want 1s", next, err)
	}
	if got := count.String(); got != "0 reads, 0 writes" {
		t.Errorf("Reap took %s, want none", got)
	}
}

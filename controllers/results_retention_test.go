package controllers_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// archive is a place with results of some tasks.
type archive struct {
	fleet.Results
	mu   sync.Mutex
	uids []string
}

func (a *archive) Tasks(context.Context) ([]string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.uids), nil
}

func (a *archive) Delete(_ context.Context, uid string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.uids = slices.DeleteFunc(a.uids, func(u string) bool { return u == uid })
	return nil
}

// Results are kept as long as their task.
func TestResultsRetention(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	stays, goes := testobj.BatchTask("stays").In(namespace).Publish("event", "x").Obj(), testobj.BatchTask("goes").In(namespace).Publish("event", "x").Obj()
	for _, task := range []client.Object{stays, goes} {
		if err := env.Client.Create(t.Context(), task); err != nil {
			t.Fatal(err)
		}
	}
	kept := &archive{uids: []string{string(stays.UID), string(goes.UID), "of-long-ago"}}
	clock := testingclock.NewFakeClock(time.Unix(1_700_000_000, 0))
	retention := &controllers.ResultsRetention{
		Client: env.Client, Clock: clock, Results: func(context.Context) []fleet.Results { return []fleet.Results{kept} },
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- retention.Start(ctx) }()
	want := func(uids ...string) {
		t.Helper()
		waitFor(t, "the results of tasks that are gone to be removed", func() (bool, any) {
			clock.Step(5 * time.Minute)
			got, _ := kept.Tasks(ctx)
			return slices.Equal(got, uids), got
		})
	}
	want(string(stays.UID), string(goes.UID))
	if err := env.Client.Delete(t.Context(), goes); err != nil {
		t.Fatal(err)
	}
	want(string(stays.UID))
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

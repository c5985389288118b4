package controllers_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/lease"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// archive is a place with results of some tasks.
type archive struct {
	fleet.Results
	mu   sync.Mutex
	kept []fleet.KeptResults
}

func (a *archive) Tasks(_ context.Context, after string) ([]fleet.KeptResults, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var page []fleet.KeptResults
	for _, task := range a.kept {
		if task.TaskUID > after && len(page) < 2 {
			page = append(page, task)
		}
	}
	return page, nil
}

func (a *archive) Delete(_ context.Context, kept fleet.KeptResults) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kept = slices.DeleteFunc(a.kept, func(task fleet.KeptResults) bool { return task == kept })
	return nil
}

func (a *archive) names() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []string
	for _, task := range a.kept {
		names = append(names, task.Epoch)
	}
	slices.Sort(names)
	return names
}

// Results are kept as long as their task.
func TestResultsRetention(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	lags := testobj.BatchTask("lags").In(namespace).Publish("event", "x").Obj()
	stays, goes := testobj.BatchTask("stays").In(namespace).Publish("event", "x").Obj(), testobj.BatchTask("goes").In(namespace).Publish("event", "x").Obj()
	for _, task := range []client.Object{stays, goes, lags} {
		if err := env.Client.Create(t.Context(), task); err != nil {
			t.Fatal(err)
		}
	}
	// Kept by an older program, and another task of the name.
	of := func(task client.Object, name, epoch string) fleet.KeptResults {
		return fleet.KeptResults{TaskUID: string(task.GetUID()), Namespace: namespace, TaskName: name, Epoch: epoch}
	}
	kept := &archive{kept: []fleet.KeptResults{
		of(stays, "stays", "stays"), of(goes, "goes", "goes"), of(lags, "", "lags"),
		{TaskUID: "of-long-ago", Namespace: namespace, Epoch: "unnamed"},
		{TaskUID: "of-another", Namespace: namespace, TaskName: "stays", Epoch: "another's"},
	}}
	slices.SortFunc(kept.kept, func(a, b fleet.KeptResults) int { return strings.Compare(a.TaskUID, b.TaskUID) })
	clock := testingclock.NewFakeClock(time.Unix(1_700_000_000, 0))
	elected := lease.Elected("host", 10*time.Second, clock)
	retention := &controllers.ResultsRetention{
		Client: behindNewTasks(env, "stays", "lags"), Live: env.Client, Clock: clock, Lease: elected,
		Results: func(context.Context) []fleet.Results { return []fleet.Results{kept} },
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- retention.Start(ctx) }()
	sweeps := 0
	want := func(names ...string) {
		t.Helper()
		waitFor(t, "the results of tasks that are gone to be removed", func() (bool, any) {
			clock.Step(5 * time.Minute)
			sweeps++
			return slices.Equal(kept.names(), names) && sweeps > 3, kept.names()
		})
	}
	// Who does not surely hold the Lease removes nothing.
	want("another's", "goes", "lags", "stays", "unnamed")
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	retention.Lease = nil
	ctx, stop = context.WithCancel(t.Context())
	go func() { stopped <- retention.Start(ctx) }()
	want("goes", "lags", "stays")
	if err := env.Client.Delete(t.Context(), goes); err != nil {
		t.Fatal(err)
	}
	want("lags", "stays")
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// behindNewTasks is a cache that does not show these tasks yet.
func behindNewTasks(env *testenv.Env, names ...string) client.Client {
	return interceptor.NewClient(env.Client, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			err := c.List(ctx, list, options...)
			if tasks, ok := list.(*v1alpha1.BatchTaskList); ok {
				tasks.Items = slices.DeleteFunc(tasks.Items, func(task v1alpha1.BatchTask) bool { return slices.Contains(names, task.Name) })
			}
			return err
		},
	})
}

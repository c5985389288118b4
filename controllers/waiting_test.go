package controllers_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testobj"
)

// A thousand tasks wait and none of them delays one that is due. This is the last
// test of the package: what it leaves behind keeps the reconcilers of any other busy.
func TestManyWaitingTasks(t *testing.T) {
	const namespaces, each, due = 200, 5, 10
	op := run(t, settings{})
	far := time.Now().Add(20 * time.Hour).Unix()
	type place struct{ namespace, id string }
	places := make([]place, namespaces)
	parallel(20, namespaces, func(i int) {
		places[i].namespace = op.env.Namespace(t)
		places[i].id = uniqueID(places[i].namespace)
		objects := []client.Object{testobj.Product("product").In(places[i].namespace).ID(places[i].id).Obj()}
		for j := range each {
			objects = append(objects, testobj.BatchTask(fmt.Sprint("task-", j)).In(places[i].namespace).Product(places[i].id).
				Publish("event", "close").ScheduleAt(far).Obj())
		}
		for _, object := range objects {
			if err := op.env.Client.Create(t.Context(), object); err != nil {
				t.Errorf("creating %T: %v", object, err)
			}
		}
	})
	waitUpTo(t, 5*time.Minute, "a thousand tasks to wait", func() (bool, any) {
		var list v1alpha1.BatchTaskList
		if err := op.env.Client.List(t.Context(), &list); err != nil {
			return false, err
		}
		n := 0
		for i := range list.Items {
			if list.Items[i].Status.Phase == v1alpha1.TaskPhaseWaiting && list.Items[i].Spec.ScheduleTimeInSeconds == far {
				n++
			}
		}
		return n == namespaces*each, n
	})

	namespace := op.env.Namespace(t)
	id := uniqueID(namespace)
	op.create(t, testobj.TaskQuota(namespace).Limit(due).Obj(), testobj.Product("product").In(namespace).ID(id).Obj())
	op.waitProduct(t, namespace, metav1.ConditionTrue, v1alpha1.ReasonProductReady)
	first := time.Now().Unix() + 8
	for i := range due {
		op.create(t, testobj.BatchTask(fmt.Sprint("due-", i)).In(namespace).Product(id).Publish("event", "close").ScheduleAt(first+int64(i/3)).Obj())
	}
	waitUpTo(t, time.Minute, "the tasks to be waited for", func() (bool, any) {
		var list v1alpha1.BatchTaskList
		if err := op.env.Client.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
			return false, err
		}
		return !slices.ContainsFunc(list.Items, func(task v1alpha1.BatchTask) bool { return task.Status.Phase == "" }), list.Items
	})
	looks := func() (n int) { // at the thousand
		for _, place := range places {
			for j := range each {
				n += op.executor.Looks(types.NamespacedName{Namespace: place.namespace, Name: fmt.Sprint("task-", j)})
			}
		}
		return n
	}
	before, waited := looks(), time.Now()
	lags := map[string]time.Duration{}
	waitFor(t, "the tasks to start", func() (bool, any) {
		var list v1alpha1.BatchTaskList
		if err := op.env.Client.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
			return false, err
		}
		seen := time.Now()
		for _, task := range list.Items {
			if _, again := lags[task.Name]; again || task.Status.Phase != v1alpha1.TaskPhaseProcessing {
				continue
			}
			lags[task.Name] = seen.Sub(task.Status.ScheduleTime.Time)
			if lags[task.Name] < 0 {
				t.Errorf("task %s started %v early", task.Name, -lags[task.Name])
			}
			// One that was due before all had been created and seen is not late for that.
			lags[task.Name] = min(lags[task.Name], seen.Sub(waited))
		}
		return len(lags) == due, lags
	})
	sorted := slices.Sorted(maps.Values(lags))
	n := looks() - before
	t.Logf("from the scheduled time to a start that was seen: median %v, greatest %v; %v looks at those that wait", sorted[due/2], sorted[due-1], n)
	if sorted[due-1] > 30*time.Second {
		t.Errorf("tasks started late: %v; want none above 30s", sorted)
	}
	// The thousand were done with when the last ones came, but for the few that were being
	// labelled then; nobody looks at them since.
	if most := namespaces * each / 5; n > most {
		t.Errorf("%v looks at the tasks that wait while %d started, want at most %d: those that wait take part", n, due, most)
	}
}

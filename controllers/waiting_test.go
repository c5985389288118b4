package controllers_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

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

	events, err := op.env.Client.Watch(t.Context(), &v1alpha1.BatchTaskList{})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
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
	before := reconciles(t)
	timeout := time.NewTimer(2 * time.Minute)
	defer timeout.Stop()
	lags := map[string]time.Duration{}
	for len(lags) < due {
		select {
		case event := <-events.ResultChan():
			seen := time.Now()
			task, ok := event.Object.(*v1alpha1.BatchTask)
			if !ok || task.Namespace != namespace || task.Status.Phase != v1alpha1.TaskPhaseProcessing {
				continue
			}
			if _, again := lags[task.Name]; !again {
				lags[task.Name] = seen.Sub(task.Status.ScheduleTime.Time)
			}
		case <-timeout.C:
			t.Fatalf("%d of %d tasks have started", len(lags), due)
		}
	}
	var sorted []time.Duration
	for name, lag := range lags {
		if lag < 0 {
			t.Errorf("task %s started %v early", name, -lag)
		}
		sorted = append(sorted, lag)
	}
	slices.Sort(sorted)
	n := reconciles(t) - before
	t.Logf("from the scheduled time to a start that was seen: median %v, greatest %v; %v reconciles", sorted[due/2], sorted[due-1], n)
	if sorted[due-1] > 30*time.Second {
		t.Errorf("tasks started late: %v; want none above 30s", sorted)
	}
	// The thousand were done with when the last ones came; nobody looks at them since.
	if n > 20*due {
		t.Errorf("%v reconciles while %d tasks started, want at most %d: those that wait take part", n, due, 20*due)
	}
}

// reconciles is how many times a BatchTask was reconciled in this process.
func reconciles(t *testing.T) (n float64) {
	t.Helper()
	families, err := metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "controller_runtime_reconcile_total" {
			continue
		}
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "controller" && label.GetValue() == "batchtask" {
					n += metric.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

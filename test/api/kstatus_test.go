package api_test

import (
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// What nobody has looked at yet is not Current, however a GitOps tool comes to see it:
// as the answer to its create, by a read, in a list or in a watch.
func TestKstatusBeforeTheOperatorHasLooked(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	for kind, typed := range map[string]client.Object{
		"BatchTask": testobj.BatchTask("new").In(namespace).Publish("event", "close").Obj(),
		"Product":   testobj.Product("new").In(namespace).Obj(),
	} {
		t.Run(kind, func(t *testing.T) {
			list := &unstructured.UnstructuredList{}
			list.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind + "List"))
			events, err := env.Client.Watch(t.Context(), list, client.InNamespace(namespace))
			if err != nil {
				t.Fatal(err)
			}
			defer events.Stop()

			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(typed)
			if err != nil {
				t.Fatal(err)
			}
			created := object(kind, namespace, "new", content)
			if err := env.Client.Create(t.Context(), created); err != nil {
				t.Fatal(err)
			}
			inProgress(t, "the answer to its create", created)

			read := object(kind, namespace, "new", map[string]any{})
			if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(created), read); err != nil {
				t.Fatal(err)
			}
			inProgress(t, "a read", read)
			if err := env.Client.List(t.Context(), list, client.InNamespace(namespace)); err != nil || len(list.Items) != 1 {
				t.Fatalf("%d items, error %v", len(list.Items), err)
			}
			inProgress(t, "a list", &list.Items[0])
			select {
			case event := <-events.ResultChan():
				seen, ok := event.Object.(*unstructured.Unstructured)
				if event.Type != watch.Added || !ok {
					t.Fatalf("the watch tells %s %v", event.Type, event.Object)
				}
				inProgress(t, "a watch", seen)
			case <-time.After(time.Minute):
				t.Fatal("the watch tells nothing")
			}
		})
	}
}

func inProgress(t *testing.T, from string, seen *unstructured.Unstructured) {
	t.Helper()
	result, err := status.Compute(seen)
	if err != nil {
		t.Fatalf("kstatus: %v", err)
	}
	if result.Status != status.InProgressStatus {
		t.Errorf("by %s it is %s (%s), want InProgress; its status is %v", from, result.Status, result.Message, seen.Object["status"])
	}
}

package shim_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/test/system"
)

// A list is of metadata, shared by all who ask at once, and a task is read when it has changed:
// what a caller has just done it finds, through whichever replica.
func TestListReadsNoPayloads(t *testing.T) {
	s := system.Run(t)
	var whole, metadata, gets atomic.Int64
	counting := interceptor.NewClient(s.Env.Client, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			switch list.(type) {
			case *v1alpha1.BatchTaskList:
				whole.Add(1)
			case *metav1.PartialObjectMetadataList:
				metadata.Add(1)
			}
			return c.List(ctx, list, options...)
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
			if _, ok := object.(*v1alpha1.BatchTask); ok {
				gets.Add(1)
			}
			return c.Get(ctx, key, object, options...)
		},
	})
	f, other := startFront(t, s, settings{client: counting}), startFront(t, s, settings{})
	c := f.newCaller(t)
	there := *c
	there.f = other
	there.accepted(t)
	list := func(c *caller) map[string]float64 {
		t.Helper()
		answer := c.v2(t, "POST", map[string]string{"Action": "ListTasks", "pageNum": "1", "pageSize": "250"})
		if answer["code"] != 0.0 {
			t.Fatalf("ListTasks is answered %v", answer)
		}
		status := map[string]float64{}
		for _, task := range answer["tasks"].([]any) {
			status[task.(map[string]any)["id"].(string)] = task.(map[string]any)["status"].(float64)
		}
		if answer["taskTotalCount"] != float64(len(status)) {
			t.Errorf("%v tasks, and %d of them on one page of 250", answer["taskTotalCount"], len(status))
		}
		return status
	}
	var ids []string
	for i := range 4 {
		at, from := there, c
		if i%2 == 0 {
			at, from = *c, &there
		}
		ids = append(ids, at.mustCreate(t, map[string]string{"scheduleTimeInSeconds": inAnHour()}))
		if got := list(from); len(got) != i+1 || got[ids[i]] != 1 {
			t.Fatalf("the other replica has %v, after task %s was made", got, ids[i])
		}
		if ttl := c.object(t, ids[i]).Spec.TTLSecondsAfterFinished; ttl == nil || *ttl != 30*24*3600 {
			t.Errorf("the task is kept for %v seconds", ttl)
		}
	}
	for i, id := range ids[:2] {
		at, from := there, c
		if i == 0 {
			at, from = *c, &there
		}
		if got := at.v2(t, "POST", map[string]string{"Action": "CancelTask", "id": id}); got["code"] != 0.0 {
			t.Fatal(got)
		}
		if got := list(from); got[id] != 5 {
			t.Errorf("the other replica has %v, after task %s was cancelled", got, id)
		}
	}
	system.WaitFor(t, "the tasks to come to rest", func() (bool, any) {
		list(c)
		before := gets.Load()
		list(c)
		return gets.Load() == before, "a task is read that has not changed"
	})
	metadata.Store(0)
	const calls = 40
	var asking sync.WaitGroup
	for range calls {
		asking.Go(func() { list(c) })
	}
	asking.Wait()
	if whole.Load() != 0 {
		t.Errorf("%d lists with payloads", whole.Load())
	}
	if n := metadata.Load(); n < 1 || n > calls {
		t.Errorf("%d calls cost %d lists", calls, n)
	}
	if err := s.Env.Client.Delete(t.Context(), c.object(t, ids[3])); err != nil {
		t.Fatal(err)
	}
	if got := list(c); len(got) != 3 {
		t.Errorf("with one task deleted the list has %v", got)
	}
}

// hanging is a store that does not answer for one product until the test is over.
type hanging struct {
	product string
	over    chan struct{}
}

func (h hanging) ReadShadow(ctx context.Context, p fleet.Product, _ string) (fleet.Shadow, error) {
	if p.ProductID == h.product {
		select {
		case <-ctx.Done():
		case <-h.over:
		}
		return fleet.Shadow{}, errors.New("no answer")
	}
	return fleet.Shadow{}, nil
}

func (h hanging) ChangeShadow(context.Context, fleet.Product, string, func(fleet.Shadow) (fleet.Shadow, error)) error {
	return nil
}

// A product whose database does not answer holds up the calls about it, not those of its
// account about others, and nothing of another account.
func TestStoreThatHangs(t *testing.T) {
	s := system.Run(t)
	shadows := &hanging{over: make(chan struct{})}
	f := startFront(t, s, settings{shadows: shadows, maxInFlight: 16})
	c, victim := f.newCaller(t), f.newCaller(t)
	shadows.product = c.productID
	get := func(c *caller) map[string]string {
		return map[string]string{"Action": "GetDeviceShadow", "productID": c.productID, "deviceName": "door-1"}
	}
	var asking sync.WaitGroup
	for range 40 {
		form := qcloud.EncodeForm(c.sign(http.MethodPost, qcloud.V2, get(c)))
		asking.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+"/v2/index.php", strings.NewReader(form))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			if answer, err := http.DefaultClient.Do(r); err == nil {
				_ = answer.Body.Close()
			}
		})
	}
	defer asking.Wait()
	defer close(shadows.over)
	system.WaitFor(t, "a call to hang", func() (bool, any) {
		n := f.gauge(t, "batchtask_shim_in_flight")
		return n >= 1 && f.gauge(t, "batchtask_shim_waiting") > 10, n
	})
	for range 20 {
		if got := victim.v2(t, "POST", get(victim)); got["code"] != 0.0 {
			t.Fatalf("another account is answered %v", got)
		}
		if got := c.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": "none"}); got["code"] != 5000.0 {
			t.Fatalf("a call of the same account about no product is answered %v", got)
		}
	}
}

// Failures of an address are told and logged in detail up to a bound; a call that is signed
// right is served whatever came from its address before.
func TestFailuresOfOneAddress(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{failures: 0.001})
	c := f.newCaller(t)
	wrong := *c
	wrong.secretKey = "a guess"
	refused := map[any]int{}
	for range 400 {
		refused[wrong.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": "none"})["code"]]++
	}
	if refused[4100.0] < 100 || refused[4400.0] == 0 {
		t.Errorf("400 failures are answered %v", refused)
	}
	if logged := strings.Count(f.log.String(), `"code":"4400"`); logged != 0 {
		t.Errorf("%d failures beyond the bound are logged", logged)
	}
	for range 20 {
		if got := c.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": "none"}); got["code"] != 5000.0 {
			t.Fatalf("a good call from this address is answered %v", got)
		}
	}
}

// A call with TC3 that is sent twice is carried out once.
func TestReplayedTC3(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	body := fmt.Sprintf(`{"TaskType":"PublishMessage","ProductId":%q,"DeviceNameFilter":"^door","ScheduleTimeInSeconds":%d,
		"Tasks":{"PublishMessageTask":{"Topic":"event","Payload":"close"}}}`, c.productID, time.Now().Add(time.Hour).Unix())
	header := c.headers(t, "CreateTask", body)
	ids := make(chan any, 10)
	var calls sync.WaitGroup
	for range cap(ids) {
		calls.Go(func() { ids <- response(t, f.send(t, http.MethodPost, "/", header, body))["TaskId"] })
	}
	calls.Wait()
	close(ids)
	first := <-ids
	for id := range ids {
		if id != first {
			t.Errorf("equal calls are answered with tasks %v and %v", first, id)
		}
	}
	if tasks := c.tasks(t); len(tasks) != 1 || tasks[0] != first {
		t.Errorf("the tasks are %v, want %v alone", tasks, first)
	}

	// The action is not signed: what has made a task does nothing else.
	header.Set("X-Tc-Action", "CancelTask")
	got := response(t, f.send(t, http.MethodPost, "/", header, body))
	if e, ok := got["Error"].(map[string]any); !ok || e["Code"] != "AuthFailure.SignatureFailure" {
		t.Errorf("the same call as CancelTask is answered %v", got)
	}
	// A client may ask about a task and cancel it within a second: the bodies are equal.
	about := fmt.Sprintf(`{"Id":%q}`, first)
	header = c.headers(t, "DescribeTask", about)
	for _, action := range []string{"DescribeTask", "CancelTask", "DescribeTask", "CancelTask"} {
		header.Set("X-Tc-Action", action)
		if got := response(t, f.send(t, http.MethodPost, "/", header, about)); got["Error"] != nil {
			t.Fatalf("%s is answered %v", action, got)
		}
	}
}

// gauge returns the value of a gauge without labels.
func (f *front) gauge(t *testing.T, name string) float64 {
	t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

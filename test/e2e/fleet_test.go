package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// site is a namespace with a product and devices of its own.
type site struct {
	t         *testing.T
	client    client.WithWatch
	namespace string
	product   string
}

var products atomic.Int64

func newSite(t *testing.T, devices ...string) *site {
	t.Helper()
	env := testenv.Start(t)
	s := &site{t: t, client: env.Client, namespace: env.Namespace(t), product: fmt.Sprintf("E2E%d", products.Add(1))}
	if err := s.client.Create(t.Context(), testobj.Product("p").In(s.namespace).ID(s.product).Obj()); err != nil {
		t.Fatalf("create product: %v", err)
	}
	var wg sync.WaitGroup
	queue := make(chan string)
	for range 16 {
		wg.Go(func() {
			for name := range queue {
				if err := s.client.Create(t.Context(), testobj.Device(name).In(s.namespace).Product(s.product).Obj()); err != nil {
					t.Errorf("create device: %v", err)
				}
			}
		})
	}
	for _, name := range devices {
		queue <- name
	}
	close(queue)
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return s
}

// names returns n device names.
func names(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("d-%05d", i)
	}
	return list
}

func (s *site) create(task *v1alpha1.BatchTask) {
	s.t.Helper()
	if err := s.client.Create(s.t.Context(), task); err != nil {
		s.t.Fatalf("create task %s: %v", task.Name, err)
	}
}

func (s *site) task(name string) *testobj.BatchTaskBuilder {
	return testobj.BatchTask(name).In(s.namespace).Product(s.product)
}

func (s *site) get(name string) *v1alpha1.BatchTask {
	s.t.Helper()
	task := &v1alpha1.BatchTask{}
	if err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: s.namespace, Name: name}, task); err != nil {
		s.t.Fatalf("get task %s: %v", name, err)
	}
	return task
}

// finished waits until a task has finished.
func (s *site) finished(name string) *v1alpha1.BatchTask {
	s.t.Helper()
	var task *v1alpha1.BatchTask
	eventually(s.t, "task "+name+" to finish", func() (bool, string) {
		task = s.get(name)
		return task.Status.Phase.Finished(), describe(task)
	})
	return task
}

func describe(task *v1alpha1.BatchTask) string {
	text := fmt.Sprintf("%s, devices %+v, %s", task.Status.Phase, task.Status.Counts(), task.Status.ErrMsg)
	for _, c := range task.Status.Conditions {
		if c.Type == v1alpha1.ConditionReady {
			text += " (" + c.Reason + ": " + c.Message + ")"
		}
	}
	return text
}

// wantCounts checks all counts but that of acknowledgements, which comes later.
func wantCounts(t *testing.T, task *v1alpha1.BatchTask, phase v1alpha1.TaskPhase, want v1alpha1.DeviceCounts) {
	t.Helper()
	want.Acknowledged = task.Status.Counts().Acknowledged
	if task.Status.Phase != phase || task.Status.Counts() != want {
		t.Errorf("task %s is %s with %+v, want %s with %+v: %s",
			task.Name, task.Status.Phase, task.Status.Counts(), phase, want, task.Status.ErrMsg)
	}
}

// inbox receives what a broker delivers on a filter.
type inbox struct {
	mu       sync.Mutex
	messages map[string][]string // payloads by topic
}

func subscribe(t *testing.T, brokerURL, filter string) *inbox {
	t.Helper()
	box := &inbox{messages: map[string][]string{}}
	opts := paho.NewClientOptions().AddBroker(brokerURL).SetClientID("inbox-" + strings.Trim(filter, "$/+#")).SetOrderMatters(false).SetPingTimeout(patience)
	c := paho.NewClient(opts)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, token := range []func() paho.Token{c.Connect, func() paho.Token {
		return c.Subscribe(filter, 1, func(_ paho.Client, m paho.Message) {
			box.mu.Lock()
			defer box.mu.Unlock()
			box.messages[m.Topic()] = append(box.messages[m.Topic()], string(m.Payload()))
		})
	}} {
		started := token()
		select {
		case <-started.Done():
			if started.Error() != nil {
				t.Fatalf("subscribe to %s: %v", filter, started.Error())
			}
		case <-ctx.Done():
			t.Fatalf("subscribe to %s: %v", filter, ctx.Err())
		}
	}
	t.Cleanup(func() { c.Disconnect(100) })
	return box
}

func (b *inbox) counts() (messages, topics int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, list := range b.messages {
		messages += len(list)
	}
	return messages, len(b.messages)
}

func (b *inbox) on(topic string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.messages[topic]...)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/product"
)

// Very many objects: namespaces with a product each, finished tasks, and tasks that run at
// once. They are made while no manager runs; what is measured begins with its start.
const (
	manyPayload  = 16 << 10 // bytes of each finished task
	manyPatience = 20 * time.Minute
	manyPerSpace = 1000 // finished tasks of a namespace
	runningFor   = 20 * time.Second
)

// manyCase is how many there are of each.
type manyCase struct {
	products, finished, running, devices int
}

func (c manyCase) measure(ctx context.Context, env *localenv.Env) ([]figure, error) {
	if err := removeWebhooks(ctx, env); err != nil {
		return nil, err
	}
	var figures []figure
	for _, part := range []func(context.Context, *localenv.Env) ([]figure, error){c.measureFinished, c.measureRunning, c.measureProducts} {
		measured, err := part(ctx, env)
		figures = append(figures, measured...)
		if err != nil {
			return figures, err
		}
	}
	return figures, nil
}

// removeWebhooks lets objects be made while no manager runs.
func removeWebhooks(ctx context.Context, env *localenv.Env) error {
	for _, o := range []client.Object{
		&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "batchtask-validating"}},
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "batchtask-mutating"}},
	} {
		if err := client.IgnoreNotFound(env.Client.Delete(ctx, o)); err != nil {
			return fmt.Errorf("remove the webhooks: %w", err)
		}
	}
	return nil
}

// measureProducts: a product in each namespace, until all are Ready.
func (c manyCase) measureProducts(ctx context.Context, env *localenv.Env) ([]figure, error) {
	progress(fmt.Sprintf("making %d namespaces with a product each", c.products))
	err := forAll(ctx, c.products, func(ctx context.Context, i int) error {
		namespace := fmt.Sprintf("many-%05d", i)
		if err := env.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
			return fmt.Errorf("create namespace %s: %w", namespace, err)
		}
		return env.Client.Create(ctx, newProduct(namespace, fmt.Sprintf("MANY%05d", i)))
	})
	if err != nil {
		return nil, err
	}
	m, err := startOwnManager(ctx, env)
	if err != nil {
		return nil, err
	}
	defer m.stop()
	err = m.await(ctx, 500*time.Millisecond, func() error {
		ready := 0
		err := eachPage(ctx, env, &v1alpha1.ProductList{}, func(list *v1alpha1.ProductList) {
			for i := range list.Items {
				if product.Ready(&list.Items[i]) {
					ready++
				}
			}
		})
		if err == nil && ready < c.products {
			err = fmt.Errorf("%d of %d products are Ready", ready, c.products)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	took := reading{value: time.Since(m.started).Seconds()}
	progress(fmt.Sprintf("all are Ready after %.1f s", took.value))
	return []figure{newFigure(fmt.Sprintf("%d namespaces with a product each, start of the manager to all Ready", c.products), "s", took).
		aiming(&aim{ofValue, atMost, 180})}, nil
}

// measureFinished: tasks that finished long ago, with large payloads.
func (c manyCase) measureFinished(ctx context.Context, env *localenv.Env) ([]figure, error) {
	progress(fmt.Sprintf("making %d finished tasks of %d KiB", c.finished, manyPayload>>10))
	completed := metav1.NewTime(time.Now().Add(-time.Hour))
	text := strings.Repeat("x", manyPayload)
	for n := 0; n < c.finished; n += manyPerSpace {
		namespace := fmt.Sprintf("finished-%03d", n/manyPerSpace)
		if err := env.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
			return nil, fmt.Errorf("create namespace %s: %w", namespace, err)
		}
	}
	err := forAll(ctx, c.finished, func(ctx context.Context, i int) error {
		task := newTask(fmt.Sprintf("finished-%03d", i/manyPerSpace), fmt.Sprintf("task-%06d", i), "FINISHED", ".*")
		task.Spec.Tasks.PublishMessageTask.Payload = text
		if err := env.Client.Create(ctx, task); err != nil {
			return fmt.Errorf("create task %s/%s: %w", task.Namespace, task.Name, err)
		}
		return patchStatus(ctx, env.Client, task, &v1alpha1.BatchTaskStatus{
			Phase: v1alpha1.TaskPhaseDone, ObservedGeneration: 1, TaskID: fmt.Sprintf("%024x", i),
			StartTime: &completed, CompletionTime: &completed,
			Devices: &v1alpha1.DeviceCounts{Matched: 1000, Succeeded: 1000}, Percent: 100,
		})
	})
	if err != nil {
		return nil, err
	}
	m, err := startOwnManager(ctx, env)
	if err != nil {
		return nil, err
	}
	defer m.stop()
	peak := watchMemory(ctx, m.metricsURL)
	start := reading{value: m.readyAfter.Seconds()}
	// What it does with each of them, it has done when as many are in its metrics and a
	// minute has gone.
	err = m.await(ctx, time.Second, func() error {
		n, err := processMetric(ctx, m.metricsURL, `batchtask_tasks{phase="Done",type="PublishMessage"}`)
		if err == nil && int(n) < c.finished {
			err = fmt.Errorf("the manager knows of %.0f of %d tasks", n, c.finished)
		}
		return err
	})
	if err == nil {
		err = pause(ctx, time.Minute)
	}
	memory := peak()
	if err != nil {
		return nil, err
	}
	progress(fmt.Sprintf("ready after %s, peak memory %.0f MiB", m.readyAfter, memory.value))
	name := fmt.Sprintf("%d finished tasks of %d KiB", c.finished, manyPayload>>10)
	return []figure{
		newFigure(name+", start of the manager to ready", "s", start).aiming(&aim{ofValue, atMost, 60}),
		newFigure(name+", peak memory of the manager", "MiB", memory).aiming(&aim{ofValue, atMost, 300}),
	}, nil
}

// measureRunning: tasks that run at once, for much longer than is measured.
func (c manyCase) measureRunning(ctx context.Context, env *localenv.Env) ([]figure, error) {
	quota := &v1alpha1.TaskQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: env.Namespace, Name: v1alpha1.TaskQuotaName},
		Spec:       v1alpha1.TaskQuotaSpec{MaxActiveTasks: 1000},
	}
	if err := env.Client.Create(ctx, quota); err != nil {
		return nil, fmt.Errorf("create TaskQuota: %w", err)
	}
	if err := makeDevices(ctx, env, deviceNames(c.devices)); err != nil {
		return nil, err
	}
	m, err := startOwnManager(ctx, env)
	if err != nil {
		return nil, err
	}
	defer m.stop()
	if err := awaitProduct(ctx, env, newProduct(env.Namespace, productID)); err != nil {
		return nil, err
	}
	watching, err := env.Client.Watch(ctx, &v1alpha1.BatchTaskList{}, client.InNamespace(env.Namespace))
	if err != nil {
		return nil, fmt.Errorf("watch tasks: %w", err)
	}
	var writes, processing, finished atomic.Int64
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		seen := map[string]bool{}
		for event := range watching.ResultChan() {
			task, ok := event.Object.(*v1alpha1.BatchTask)
			if !ok {
				continue
			}
			writes.Add(1)
			if task.Status.Phase == v1alpha1.TaskPhaseProcessing && !seen[task.Name] {
				seen[task.Name] = true
				processing.Add(1)
			}
			if task.Status.Phase.Finished() {
				finished.Add(1)
			}
		}
	}()
	defer func() { watching.Stop(); <-counted }()
	err = forAll(ctx, c.running, func(ctx context.Context, i int) error {
		return env.Client.Create(ctx, newTask(env.Namespace, fmt.Sprintf("running-%03d", i), productID, ".*"))
	})
	if err != nil {
		return nil, fmt.Errorf("create tasks: %w", err)
	}
	err = m.await(ctx, 100*time.Millisecond, func() error {
		if n := processing.Load(); int(n) < c.running {
			return fmt.Errorf("%d of %d tasks run", n, c.running)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	before := writes.Load()
	err = pause(ctx, runningFor)
	rate := reading{value: float64(writes.Load()-before) / runningFor.Seconds(), err: err}
	if n := finished.Load(); n > 0 {
		rate.err = errors.Join(rate.err, fmt.Errorf("%d of the tasks had finished: there are too few devices", n))
	}
	progress(fmt.Sprintf("%d running tasks: %.1f status writes a second", c.running, rate.value))
	return []figure{newFigure(fmt.Sprintf("%d running tasks over %d devices, writes of their status", c.running, c.devices), "writes/s", rate).
		aiming(&aim{ofValue, atMost, 100})}, nil
}

// ownManager is a manager that a case starts and stops.
type ownManager struct {
	cmd        *exec.Cmd
	ended      chan struct{}
	started    time.Time
	readyAfter time.Duration
	metricsURL string
}

// startOwnManager starts a manager, without webhooks, and waits until it is ready.
func startOwnManager(ctx context.Context, env *localenv.Env) (*ownManager, error) {
	var addresses [2]string
	for i := range addresses {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("look for a port: %w", err)
		}
		addresses[i] = l.Addr().String()
		_ = l.Close()
	}
	log, err := os.Create(filepath.Join(filepath.Dir(env.KubeConfig), "many.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	m := &ownManager{ended: make(chan struct{}), metricsURL: "http://" + addresses[0] + "/metrics"}
	// Not CommandContext, which kills.
	m.cmd = exec.Command(env.Program, "manager", "--webhooks=false",
		"--metrics-bind-address="+addresses[0], "--metrics-secure=false", "--health-probe-bind-address="+addresses[1])
	m.cmd.Env = append(os.Environ(), "KUBECONFIG="+env.KubeConfig, "MQTT_URL="+env.MQTTURL)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.started = time.Now()
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the manager: %w", err)
	}
	go func() {
		_ = m.cmd.Wait()
		close(m.ended)
	}()
	err = m.await(ctx, 50*time.Millisecond, func() error { return answersOK(ctx, "http://"+addresses[1]+"/readyz") })
	if err != nil {
		m.stop()
		return nil, fmt.Errorf("the manager is not ready: %w", err)
	}
	m.readyAfter = time.Since(m.started)
	return m, nil
}

func (m *ownManager) stop() {
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.ended:
	case <-time.After(30 * time.Second):
		_ = m.cmd.Process.Kill()
		<-m.ended
	}
}

// await asks until there is no error, while the manager runs.
func (m *ownManager) await(ctx context.Context, interval time.Duration, ask func() error) error {
	for deadline := time.Now().Add(manyPatience); ; {
		err := ask()
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-m.ended:
			return errors.New("the manager ended, see many.log")
		case <-time.After(interval):
		}
	}
}

func answersOK(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, res.Status)
	}
	return nil
}

// eachPage reads all objects of a kind, a page at a time.
func eachPage[L client.ObjectList](ctx context.Context, env *localenv.Env, list L, see func(L)) error {
	for next := ""; ; {
		if err := env.Client.List(ctx, list, client.Limit(500), client.Continue(next)); err != nil {
			return fmt.Errorf("list %T: %w", list, err)
		}
		see(list)
		if next = list.GetContinue(); next == "" {
			return nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

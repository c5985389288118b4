package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
)

const (
	productID = "BENCH00001"
	topic     = "event"
	payload   = "close"
	rounds    = 5   // throughput is the median of this many tasks
	latencies = 100 // tasks for the latency
)

// publishCase is PublishMessage over a number of devices.
type publishCase struct {
	devices int
	flags   []string // of the manager
	latency bool     // measure it here
	aim     string   // for the throughput ratio
}

func (c publishCase) measure(ctx context.Context, env *localenv.Env) ([]figure, error) {
	size, as := c.devices, strings.Join(append([]string{""}, c.flags...), " ")
	names := make([]string, size)
	for i := range names {
		names[i] = fmt.Sprintf("door-%06d", i)
	}
	progress(fmt.Sprintf("making %d devices", size))
	if err := makeDevices(ctx, env, names); err != nil {
		return nil, err
	}
	memory := watchMemory(ctx, env.MetricsURL)

	var rates, limits []float64
	for round := range rounds {
		limit, err := bestWriter(ctx, env.MQTTURL, names)
		if err != nil {
			return nil, fmt.Errorf("measure the limit: %w", err)
		}
		took, err := runTask(ctx, env, newTask(env, fmt.Sprintf("round-%d", round), ".*"), size)
		if err != nil {
			return nil, err
		}
		limits, rates = append(limits, limit), append(rates, float64(size)/took.Seconds())
		progress(fmt.Sprintf("%d devices: task %.0f/s, writer %.0f/s", size, rates[round], limit))
	}
	rate, limit := median(rates), median(limits)
	figures := []figure{
		{
			Case: fmt.Sprintf("PublishMessage over %d devices, create to Done%s", size, as), Value: rate, Unit: "devices/s",
			Limit: limit, LimitIs: "hand-written MQTT writer, window 1000, best of 1, 2 and 4 connections", Ratio: rate / limit,
			Aim: c.aim,
		},
		{Case: fmt.Sprintf("manager, peak memory at %d devices%s", size, as), Value: memory() / (1 << 20), Unit: "MiB resident"},
	}
	if c.latency {
		p50, p99, err := latency(ctx, env, names[0])
		if err != nil {
			return nil, err
		}
		figures = append(figures,
			figure{Case: fmt.Sprintf("create to first message, p50 of %d tasks", latencies), Value: p50, Unit: "ms"},
			figure{Case: fmt.Sprintf("create to first message, p99 of %d tasks", latencies), Value: p99, Unit: "ms"})
	}
	return figures, nil
}

func makeDevices(ctx context.Context, env *localenv.Env, names []string) error {
	product := &v1alpha1.Product{ObjectMeta: metav1.ObjectMeta{Namespace: env.Namespace, Name: "bench"}, Spec: v1alpha1.ProductSpec{ProductID: productID}}
	if err := env.Client.Create(ctx, product); err != nil {
		return fmt.Errorf("create product: %w", err)
	}
	queue := make(chan string)
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	for range 32 {
		wg.Go(func() {
			for name := range queue {
				device := &v1alpha1.Device{
					ObjectMeta: metav1.ObjectMeta{Namespace: env.Namespace, Name: name},
					Spec:       v1alpha1.DeviceSpec{ProductID: productID, DeviceName: name},
				}
				if err := env.Client.Create(ctx, device); err != nil {
					select {
					case failed <- fmt.Errorf("create device: %w", err):
					default:
					}
				}
			}
		})
	}
	for _, name := range names {
		queue <- name
	}
	close(queue)
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func newTask(env *localenv.Env, name, filter string) *v1alpha1.BatchTask {
	return &v1alpha1.BatchTask{
		ObjectMeta: metav1.ObjectMeta{Namespace: env.Namespace, Name: name},
		Spec: v1alpha1.BatchTaskSpec{
			TaskType: v1alpha1.TaskTypePublishMessage, ProductID: productID, DeviceNameFilter: filter,
			Tasks: v1alpha1.TaskDetails{PublishMessageTask: &v1alpha1.PublishMessageTask{Topic: topic, Payload: payload}},
		},
	}
}

// runTask creates a task over all devices and returns how long it took to be Done.
func runTask(ctx context.Context, env *localenv.Env, task *v1alpha1.BatchTask, devices int) (time.Duration, error) {
	name := task.Name
	watch, err := env.Client.Watch(ctx, &v1alpha1.BatchTaskList{}, client.InNamespace(env.Namespace), client.MatchingFields{"metadata.name": name})
	if err != nil {
		return 0, fmt.Errorf("watch task %s: %w", name, err)
	}
	defer watch.Stop()
	started := time.Now()
	if err := env.Client.Create(ctx, task); err != nil {
		return 0, fmt.Errorf("create task %s: %w", name, err)
	}
	for event := range watch.ResultChan() {
		task, ok := event.Object.(*v1alpha1.BatchTask)
		if !ok || !task.Status.Phase.Finished() {
			continue
		}
		took := time.Since(started)
		if want := (v1alpha1.DeviceCounts{Matched: int64(devices), Succeeded: int64(devices)}); task.Status.Devices != want {
			return 0, fmt.Errorf("task %s is %s with %+v: %s", name, task.Status.Phase, task.Status.Devices, task.Status.ErrMsg)
		}
		return took, nil
	}
	return 0, errors.Join(errors.New("the watch ended before the task"), ctx.Err())
}

// latency returns the time from the create call to the first message at a device.
func latency(ctx context.Context, env *localenv.Env, device string) (p50, p99 float64, err error) {
	arrived := make(chan time.Time, 1)
	c := paho.NewClient(paho.NewClientOptions().AddBroker(env.MQTTURL).SetClientID("bench-device"))
	if token := c.Connect(); token.Wait() && token.Error() != nil {
		return 0, 0, fmt.Errorf("connect the device: %w", token.Error())
	}
	defer c.Disconnect(100)
	receive := func(paho.Client, paho.Message) { arrived <- time.Now() }
	if token := c.Subscribe(productID+"/"+device+"/"+topic, 1, receive); token.Wait() && token.Error() != nil {
		return 0, 0, fmt.Errorf("subscribe the device: %w", token.Error())
	}
	took := make([]float64, latencies)
	for i := range took {
		name := fmt.Sprintf("latency-%d", i)
		started := time.Now()
		if err := env.Client.Create(ctx, newTask(env, name, "^"+device+"$")); err != nil {
			return 0, 0, fmt.Errorf("create task %s: %w", name, err)
		}
		select {
		case at := <-arrived:
			took[i] = float64(at.Sub(started).Microseconds()) / 1000
		case <-time.After(30 * time.Second):
			return 0, 0, fmt.Errorf("task %s reached its device in no 30 s", name)
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
		if err := waitDone(ctx, env, name); err != nil {
			return 0, 0, err
		}
	}
	slices.Sort(took)
	return took[latencies/2], took[latencies*99/100], nil
}

func waitDone(ctx context.Context, env *localenv.Env, name string) error {
	for ctx.Err() == nil {
		task := &v1alpha1.BatchTask{}
		if err := env.Client.Get(ctx, client.ObjectKey{Namespace: env.Namespace, Name: name}, task); err != nil {
			return fmt.Errorf("read task %s: %w", name, err)
		}
		if task.Status.Phase.Finished() {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return ctx.Err()
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

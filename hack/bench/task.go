package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
)

// How long to wait for what must come.
const readyAfter = time.Minute

func newTask(namespace, name, productID, filter string) *v1alpha1.BatchTask {
	return &v1alpha1.BatchTask{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.BatchTaskSpec{
			TaskType: v1alpha1.TaskTypePublishMessage, ProductID: productID, DeviceNameFilter: filter,
			Tasks: v1alpha1.TaskDetails{PublishMessageTask: &v1alpha1.PublishMessageTask{Topic: topic, Payload: payload}},
		},
	}
}

// taskRounds is what the rounds of one kind of task over all devices gave.
type taskRounds struct {
	rates     series // devices/s
	processor series // µs of the manager for each device
	limits    series // devices/s
}

// run runs a task over so many devices and keeps what it gave.
func (r *taskRounds) run(ctx context.Context, env *localenv.Env, task *v1alpha1.BatchTask, devices int) error {
	before, beforeErr := processMetric(ctx, env.MetricsURL, processorMetric)
	took, err := runTask(ctx, env, task, devices)
	if err != nil {
		return err
	}
	after, afterErr := processMetric(ctx, env.MetricsURL, processorMetric)
	r.rates.add(float64(devices)/took.Seconds(), nil)
	r.processor.add((after-before)*1e6/float64(devices), errors.Join(beforeErr, afterErr))
	return nil
}

// figures are the throughput, beside the limit, and the processor time.
func (r *taskRounds) figures(name, limitIs string, a *aim) (throughput, processor figure) {
	return newFigure(name+", create to Done", "devices/s", r.rates.median()).beside(r.limits.median(), limitIs).aiming(a),
		newFigure(name+", processor time of the manager", "µs/device", r.processor.median())
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
		if !ok {
			return 0, fmt.Errorf("the watch ended before task %s: %+v", name, event.Object)
		}
		if task.Status.Phase.Finished() {
			return time.Since(started), checkDone(task, devices)
		}
	}
	return 0, errors.Join(fmt.Errorf("the watch ended before task %s", name), ctx.Err())
}

// checkDone fails unless every device of the task has succeeded.
func checkDone(task *v1alpha1.BatchTask, devices int) error {
	if want := (v1alpha1.DeviceCounts{Matched: int64(devices), Succeeded: int64(devices)}); task.Status.Counts() != want {
		return fmt.Errorf("task %s/%s is %s with %+v: %s", task.Namespace, task.Name, task.Status.Phase, task.Status.Counts(), task.Status.ErrMsg)
	}
	return nil
}

// awaitNoSlots waits until no task of these namespaces holds a slot: each is finished
// and nothing is left to do for it.
func awaitNoSlots(ctx context.Context, env *localenv.Env, namespaces ...string) error {
	for _, namespace := range namespaces {
		quota := &v1alpha1.TaskQuota{}
		err := poll(ctx, 10*time.Millisecond, func() error {
			if err := env.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: v1alpha1.TaskQuotaName}, quota); err != nil {
				return err
			}
			if held := len(quota.Status.Slots); held > 0 {
				return fmt.Errorf("%d slots are held", held)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("await the end of the tasks of namespace %s: %w", namespace, err)
		}
	}
	return nil
}

// poll asks until there is no error, for readyAfter at most.
func poll(ctx context.Context, interval time.Duration, ask func() error) error {
	for deadline := time.Now().Add(readyAfter); ; time.Sleep(interval) {
		err := ask()
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
	}
}

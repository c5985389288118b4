package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
)

func asTask(object *unstructured.Unstructured) (*v1alpha1.BatchTask, error) {
	task := &v1alpha1.BatchTask{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, task); err != nil {
		return nil, err
	}
	return task, nil
}

// expect works out which devices each task is for.
func (d *demo) expect(tasks []*v1alpha1.BatchTask) error {
	d.expected = map[string][]string{}
	for _, task := range tasks {
		filter, err := regexp.Compile(task.Spec.DeviceNameFilter)
		if err != nil {
			return fmt.Errorf("task %s: %w", task.Name, err)
		}
		for _, name := range deviceNames(d.devices) {
			if filter.MatchString(name) {
				d.expected[task.Name] = append(d.expected[task.Name], name)
			}
		}
	}
	return nil
}

// follow draws the progress of the tasks from a watch until all have finished,
// and returns them as they are then.
func (d *demo) follow(ctx context.Context, tasks []*v1alpha1.BatchTask) ([]*v1alpha1.BatchTask, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the tasks have not finished within %s", patience))
	defer cancel()
	drawing := &bars{out: d.out}
	// A watch that names no version begins with the objects as they are.
	events, err := d.env.Client.Watch(ctx, &v1alpha1.BatchTaskList{}, client.InNamespace(d.env.Namespace))
	if err != nil {
		return nil, fmt.Errorf("watching the tasks: %w", err)
	}
	defer events.Stop()
	for {
		drawing.draw(progress(tasks))
		if allFinished(tasks) {
			return tasks, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case event, open := <-events.ResultChan():
			if !open {
				return nil, errors.New("watching the tasks: the API server ended the watch")
			}
			if err := take(event, tasks); err != nil {
				return nil, err
			}
		}
	}
}

// take puts what the event says in the place of the task that it is about.
func take(event watch.Event, tasks []*v1alpha1.BatchTask) error {
	task, ok := event.Object.(*v1alpha1.BatchTask)
	if !ok {
		return fmt.Errorf("watching the tasks: unexpected event %s: %v", event.Type, event.Object)
	}
	for i := range tasks {
		if tasks[i].Name != task.Name {
			continue
		}
		if event.Type == watch.Deleted {
			return fmt.Errorf("task %s was deleted", task.Name)
		}
		tasks[i] = task
	}
	return nil
}

func allFinished(tasks []*v1alpha1.BatchTask) bool {
	for _, task := range tasks {
		if !task.Status.Phase.Finished() {
			return false
		}
	}
	return true
}

func progress(tasks []*v1alpha1.BatchTask) []bar {
	var all []bar
	for _, task := range tasks {
		b := bar{
			name: task.Name, phase: string(task.Status.Phase), done: task.Status.Counts().Succeeded,
			failed: task.Status.Counts().Failed, matched: task.Status.Counts().Matched,
		}
		if b.phase == "" {
			b.phase = "Created"
		}
		all = append(all, b)
	}
	return all
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/simulator"
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
			name: task.Name, phase: string(task.Status.Phase), done: task.Status.Devices.Succeeded,
			failed: task.Status.Devices.Failed, matched: task.Status.Devices.Matched,
		}
		if b.phase == "" {
			b.phase = "Created"
		}
		all = append(all, b)
	}
	return all
}

// checkDevices waits for what the devices should have, shows some of it, and
// checks all of it.
func (d *demo) checkDevices(ctx context.Context) error {
	// A task is Done when the broker has taken every message; the devices get
	// them a moment later.
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Second, errors.New("given up after 15 s"))
	defer cancel()
	for _, names := range d.expected {
		if err := d.fleet.Wait(ctx, names, 1); err != nil {
			return err
		}
	}
	for _, name := range []string{"front-door", "back-door", "door-1", "door-0001", "window-1"} {
		messages := d.fleet.Received(name)
		for _, message := range messages {
			d.out.line("  %-10s %s", name, d.out.paint(cyan, message.Topic))
			d.out.line("  %-10s %s", "", message.Payload)
		}
		if len(messages) == 0 {
			d.out.line("  %-10s %s", name, d.out.paint(dim, "(nothing: no filter matches it)"))
		}
	}
	if err := d.checkMessages(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(d.expected)) {
		d.out.good("%s: the %d devices it is for have their message, and no other device has", name, len(d.expected[name]))
	}
	return nil
}

// checkMessages checks that each device has received what it should have, and
// nothing else. MQTT allows that it has that twice, with QoS 1.
func (d *demo) checkMessages() error {
	wanted := map[string]map[string]bool{} // device, then task
	for task, names := range d.expected {
		for _, name := range names {
			if wanted[name] == nil {
				wanted[name] = map[string]bool{}
			}
			wanted[name][task] = true
		}
	}
	for _, name := range deviceNames(d.devices) {
		got := map[string]bool{}
		for _, message := range d.fleet.Received(name) {
			task, err := taskOf(name, message)
			if err != nil {
				return err
			}
			if !wanted[name][task] {
				return fmt.Errorf("device %s received a message of task %s, whose filter does not match it", name, task)
			}
			got[task] = true
		}
		for task := range wanted[name] {
			if !got[task] {
				return fmt.Errorf("device %s received no message of task %s", name, task)
			}
		}
	}
	return nil
}

// taskOf tells by its content which example a message comes from.
func taskOf(device string, message simulator.Message) (string, error) {
	var delta struct {
		Type    string `json:"type"`
		Payload struct {
			State map[string]any `json:"state"`
		} `json:"payload"`
	}
	switch message.Topic {
	case productID + "/" + device + "/" + topic:
		if message.Payload == "close" {
			return "close-doors", nil
		}
	case "$shadow/operation/result/" + productID + "/" + device:
		if json.Unmarshal([]byte(message.Payload), &delta) == nil && delta.Type == "delta" && delta.Payload.State["state"] == "open" {
			return "open-doors", nil
		}
	}
	return "", fmt.Errorf("device %s received %q on %s, which no task sends", device, message.Payload, message.Topic)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/hack/simulator"
)

const (
	// patience is how long the demo waits for any one thing.
	patience = time.Minute
	// allTasks is how many tasks send messages: both examples, as objects and as
	// calls.
	allTasks = 4
	// latecomer is a device that is not connected while the first tasks run. The
	// filter "door$" matches it.
	latecomer = "back-door"
)

// demo is one run.
type demo struct {
	*settings
	out     *output
	started time.Time

	env   *localenv.Env
	fleet *simulator.Fleet
	// keepsShadow are the devices that look after their shadows.
	keepsShadow map[string]bool
	// expected are, by the name of a task, the devices that its filter matches.
	expected map[string][]string
	// rounds is how often both examples have been carried out.
	rounds int
}

func runDemo(ctx context.Context, s *settings, out *output) error {
	d := &demo{settings: s, out: out, started: time.Now()}
	opts, err := s.options(filepath.Join(".dev", "demo"), func(what string) { out.good("%s", what) })
	if err != nil {
		return err
	}
	out.heading("1. A Kubernetes control plane, a broker and the operator, on this machine")
	err = localenv.Run(ctx, opts, func(ctx context.Context, env *localenv.Env) error {
		d.env = env
		err := d.steps(ctx)
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w (the manager's log is %s)", err, filepath.Join(s.dir, "manager.log"))
		}
		if err == nil {
			out.heading("\n8. Cleaning up")
		}
		return err
	})
	var other *localenv.RunningError
	switch {
	case errors.As(err, &other):
		return fmt.Errorf("make demo is running already in this checkout, as process %s", other.PID)
	case err != nil:
		return err
	}
	out.good("everything is stopped")
	out.line("\n%s %d devices, %d tasks, %d messages, all as expected, in %.0f s. To try it yourself: make dev",
		out.paint(green, "Done:"), s.devices, allTasks, d.fleet.Total(), time.Since(d.started).Seconds())
	return nil
}

func (d *demo) steps(ctx context.Context) error {
	d.out.heading("\n2. A product and its devices")
	if err := d.connect(ctx); err != nil {
		return err
	}
	defer d.fleet.Close()
	for _, step := range []struct {
		title string
		run   func(context.Context) error
	}{
		{"3. The two examples of CreateTask, as objects", d.runExamples},
		{"4. What the devices received", d.checkDevices},
		{"5. What the devices report, and one that was offline", d.checkShadows},
		{"6. The same two as legacy HTTP calls", d.runLegacyExamples},
		{"7. At most five tasks at once", d.showLimit},
	} {
		d.out.heading("\n" + step.title)
		if err := step.run(ctx); err != nil {
			return err
		}
	}
	// Whatever was sent by mistake has had some time to arrive.
	return d.checkMessages()
}

func (d *demo) connect(ctx context.Context) error {
	started := time.Now()
	fleet, err := createFleet(ctx, d.settings, d.env, latecomer)
	if err != nil {
		return err
	}
	d.fleet, d.keepsShadow = fleet, map[string]bool{}
	for _, name := range deviceNames(d.devices)[:d.shadows()] {
		d.keepsShadow[name] = true
	}
	d.out.good("product %s and %d devices are created, and each device but %s is connected and subscribed (%.1f s)",
		productID, d.devices, latecomer, time.Since(started).Seconds())
	d.out.line("    %s look after their shadows: what is desired of them they do and report", d.howMany())
	return nil
}

// runExamples applies both examples and follows them to their end.
func (d *demo) runExamples(ctx context.Context) error {
	var tasks []*v1alpha1.BatchTask
	for _, file := range []string{"batchtask-update-shadow.yaml", "batchtask-publish-message.yaml"} {
		path := filepath.Join("config", "samples", file)
		d.out.line("  %s", d.out.paint(dim, "$ kubectl apply --server-side -f "+path))
		objects, err := apply(ctx, d.env, filepath.Join(d.root, path))
		if err != nil {
			return err
		}
		for _, object := range objects {
			task, err := asTask(object)
			if err != nil {
				return fmt.Errorf("reading %s: %w", path, err)
			}
			d.out.line("  batchtask.iot.batchtask.dev/%s serverside-applied: %s, devices %s", task.Name, task.Spec.TaskType, task.Spec.DeviceNameFilter)
			tasks = append(tasks, task)
		}
	}
	if err := d.expect(tasks); err != nil {
		return err
	}
	started := time.Now()
	final, err := d.follow(ctx, tasks)
	if err != nil {
		return err
	}
	for _, task := range final {
		want := int64(len(d.expected[task.Name]))
		got := task.Status.Counts()
		if task.Status.Phase != v1alpha1.TaskPhaseDone || got.Matched != want || got.Succeeded != want || got.Failed != 0 {
			return fmt.Errorf("task %s is %s with %d of %d devices served and %d failed, want Done with %d of %d: %s",
				task.Name, task.Status.Phase, got.Succeeded, got.Matched, got.Failed, want, want, task.Status.ErrMsg)
		}
	}
	d.rounds++
	d.out.good("both are Done after %.1f s", time.Since(started).Seconds())
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
)

// Many small tasks: each over one device, as many in each of many namespaces as may be
// active at once there. Beside them stands the least that any controller would have to
// write for them.
const (
	smallPerNamespace = 5 // the default limit of active tasks
	smallDevice       = "door"
	roundLabel        = "bench-round"
	smallLimitIs      = "one create and one patch of the status for each, of " + bareIs + ", by as many writers at once"
)

// smallCase is many tasks over one device each.
type smallCase struct {
	env        *localenv.Env
	bare       client.Client
	namespaces []string
}

func measureSmall(ctx context.Context, env *localenv.Env, namespaces, rounds int) ([]figure, error) {
	c := smallCase{env: env, namespaces: make([]string, namespaces)}
	for i := range c.namespaces {
		c.namespaces[i] = fmt.Sprintf("small-%03d", i)
	}
	if err := c.prepare(ctx); err != nil {
		return nil, err
	}
	count := float64(c.count())
	bare, bareErr := newBareClient(env)
	c.bare = bare
	var rates, limits, processor series
	for round := range rounds {
		before, beforeErr := processMetric(ctx, env.MetricsURL, processorMetric)
		took, status, err := c.runTasks(ctx, fmt.Sprintf("round-%d", round))
		if err != nil {
			return nil, err
		}
		rates.add(count/took.Seconds(), nil)
		// What is left to do for these tasks is theirs, though nobody waits for it.
		if err := awaitNoSlots(ctx, env, c.namespaces...); err != nil {
			return nil, err
		}
		after, afterErr := processMetric(ctx, env.MetricsURL, processorMetric)
		processor.add((after-before)*1000/count, errors.Join(beforeErr, afterErr))

		if bareErr == nil {
			took, bareErr = c.writeBare(ctx, fmt.Sprintf("round-%d", round), status)
		}
		limits.add(count/took.Seconds(), bareErr)
		progress(fmt.Sprintf("%.0f tasks over one device each: %s, bare %s", count, rates.last(), limits.last()))
	}
	name := fmt.Sprintf("%.0f tasks over 1 device each, %d namespaces", count, namespaces)
	return []figure{
		newFigure(name+", create to Done", "tasks/s", rates.median()).beside(limits.median(), smallLimitIs).aiming(&aim{ofRatio, atLeast, 0.5}),
		newFigure(name+", processor time of the manager", "ms/task", processor.median()),
	}, nil
}

func (c smallCase) count() int { return len(c.namespaces) * smallPerNamespace }

// task is the i-th task of a round.
func (c smallCase) task(round string, i int) *v1alpha1.BatchTask {
	of := i % len(c.namespaces)
	task := newTask(c.namespaces[of], fmt.Sprintf("%s-%d", round, i/len(c.namespaces)), smallProduct(of), "^"+smallDevice+"$")
	task.Labels = map[string]string{roundLabel: round}
	return task
}

func smallProduct(namespace int) string { return fmt.Sprintf("SMALL%05d", namespace) }

// prepare makes the namespaces, a product and a device in each, and waits until tasks
// may run there.
func (c smallCase) prepare(ctx context.Context) error {
	progress(fmt.Sprintf("making %d namespaces with a product and a device", len(c.namespaces)))
	return forAll(ctx, len(c.namespaces), func(ctx context.Context, i int) error {
		namespace := c.namespaces[i]
		if err := c.env.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
			return fmt.Errorf("create namespace %s: %w", namespace, err)
		}
		product := newProduct(namespace, smallProduct(i))
		if err := c.env.Client.Create(ctx, product); err != nil {
			return fmt.Errorf("create product %s/%s: %w", namespace, product.Name, err)
		}
		if err := makeDevice(ctx, c.env, namespace, product.Spec.ProductID, smallDevice); err != nil {
			return err
		}
		if err := awaitProduct(ctx, c.env, product); err != nil {
			return err
		}
		// And until the manager has made the TaskQuota.
		return awaitNoSlots(ctx, c.env, namespace)
	})
}

// runTasks creates the tasks of a round and returns how long it took until all were
// Done, and the status of one of them.
func (c smallCase) runTasks(ctx context.Context, round string) (time.Duration, *v1alpha1.BatchTaskStatus, error) {
	watching, err := c.env.Client.Watch(ctx, &v1alpha1.BatchTaskList{}, client.MatchingLabels{roundLabel: round})
	if err != nil {
		return 0, nil, fmt.Errorf("watch tasks: %w", err)
	}
	defer watching.Stop()
	var status *v1alpha1.BatchTaskStatus
	started := time.Now()
	group, working := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		status, err = awaitDone(working, watching, c.count())
		return err
	})
	group.Go(func() error {
		return forAll(working, c.count(), func(ctx context.Context, i int) error {
			task := c.task(round, i)
			if err := c.env.Client.Create(ctx, task); err != nil {
				return fmt.Errorf("create task %s/%s: %w", task.Namespace, task.Name, err)
			}
			return nil
		})
	})
	err = group.Wait()
	return time.Since(started), status, err
}

// awaitDone waits until so many tasks are Done, each with its one device.
func awaitDone(ctx context.Context, watching watch.Interface, count int) (*v1alpha1.BatchTaskStatus, error) {
	done := map[string]bool{}
	for {
		select {
		case event, open := <-watching.ResultChan():
			if !open || event.Type == watch.Error {
				return nil, fmt.Errorf("the watch ended when %d of %d tasks were done: %+v", len(done), count, event.Object)
			}
			task, ok := event.Object.(*v1alpha1.BatchTask)
			if !ok || !task.Status.Phase.Finished() {
				continue
			}
			if err := checkDone(task, 1); err != nil {
				return nil, err
			}
			if done[task.Namespace+"/"+task.Name] = true; len(done) == count {
				return &task.Status, nil
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// writeBare writes as many bare tasks as a round has, each with the status of a task
// that is Done, and returns how long it took.
func (c smallCase) writeBare(ctx context.Context, round string, status *v1alpha1.BatchTaskStatus) (time.Duration, error) {
	started := time.Now()
	err := forAll(ctx, c.count(), func(ctx context.Context, i int) error {
		task := c.task(round, i)
		if err := c.bare.Create(ctx, task); err != nil {
			return fmt.Errorf("create bare task %s/%s: %w", task.Namespace, task.Name, err)
		}
		if err := patchStatus(ctx, c.bare, task, status); err != nil {
			return fmt.Errorf("patch the status of bare task %s/%s: %w", task.Namespace, task.Name, err)
		}
		return nil
	})
	return time.Since(started), err
}

package controllers

import (
	"context"
	"fmt"
	"sync"

	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
)

// tally counts what a cache holds as it changes: to look at each of a hundred thousand
// tasks whenever somebody reads the metrics would cost more than the tasks themselves.
type tally struct {
	mu    sync.Mutex
	tasks map[taskKind]int
	slots int
}

// taskKind is what tasks are counted by.
type taskKind struct{ phase, taskType string }

// watch counts what the cache holds from now on.
func (c *tally) watch(ctx context.Context, informers cache.Cache) error {
	for _, of := range []client.Object{&v1alpha1.BatchTask{}, &v1alpha1.TaskQuota{}} {
		informer, err := informers.GetInformer(ctx, of, cache.BlockUntilSynced(false))
		if err == nil {
			_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
				AddFunc:    func(obj any) { c.change(nil, obj) },
				UpdateFunc: c.change,
				DeleteFunc: func(obj any) {
					if last, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
						obj = last.Obj
					}
					c.change(obj, nil)
				},
			})
		}
		if err != nil {
			return fmt.Errorf("watch %T to count them: %w", of, err)
		}
	}
	return nil
}

func (c *tally) change(before, after any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(before, -1)
	c.add(after, 1)
}

func (c *tally) add(obj any, n int) {
	switch obj := obj.(type) {
	case *v1alpha1.BatchTask:
		if c.tasks == nil {
			c.tasks = map[taskKind]int{}
		}
		kind := taskKind{string(obj.Status.Phase), string(obj.Spec.TaskType)}
		if c.tasks[kind] += n; c.tasks[kind] == 0 {
			delete(c.tasks, kind)
		}
	case *v1alpha1.TaskQuota:
		c.slots += n * len(obj.Status.Slots)
	}
}

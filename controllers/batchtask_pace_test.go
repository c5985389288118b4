package controllers

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/executor"
)

// Five hundred running tasks write no more than the rate allows, one in a namespace of its
// own as often as five in another together, and few tasks as often as they like.
func TestPace(t *testing.T) {
	now := time.Unix(0, 0)
	p := &pace{rate: 100}
	alone := types.NamespacedName{Namespace: "alone", Name: "task"}
	tasks := []types.NamespacedName{alone}
	for ns := range 100 {
		for i := range 5 {
			tasks = append(tasks, types.NamespacedName{Namespace: fmt.Sprint("ns-", ns), Name: fmt.Sprint("task-", i)})
		}
	}
	writes := map[types.NamespacedName]int{}
	const seconds, ticks = 300, 10
	total := 0
	for range seconds * ticks {
		now = now.Add(time.Second / ticks)
		for _, task := range tasks {
			if p.due(task, now) == 0 {
				writes[task]++
				total++
				p.wrote(task, now)
			}
		}
	}
	if most := (100*seconds + 3*len(tasks)); total > most || total < 100*seconds/2 {
		t.Errorf("%d writes in %d seconds, want at most %d", total, seconds, most)
	}
	if other := writes[tasks[1]]; writes[alone] < 3*other || other == 0 {
		t.Errorf("a lone task wrote %d times, one of five %d", writes[alone], other)
	}
	for _, task := range tasks[1:] {
		p.drop(task)
	}
	p.wrote(alone, now)
	if wait := p.due(alone, now); wait > 20*time.Millisecond {
		t.Errorf("a task that nobody else runs beside waits %v", wait)
	}
}

// Only what shows progress, and nothing else, can wait.
func TestDeferrable(t *testing.T) {
	task := inPhase(v1alpha1.TaskPhaseProcessing).Obj()
	for name, c := range map[string]struct {
		progress executor.Progress
		cancel   bool
		want     bool
	}{
		"progress":          {executor.Progress{Matched: 10, Succeeded: 1}, false, true},
		"the run waits":     {executor.Progress{Matched: 10, Succeeded: 1, Waits: true}, false, false},
		"served":            {executor.Progress{Matched: 10, Succeeded: 10, Outcome: executor.OutcomeServed}, false, false},
		"suspended":         {executor.Progress{Matched: 10, Succeeded: 1, Outcome: executor.OutcomeSuspended}, false, false},
		"to be cancelled":   {executor.Progress{Matched: 10, Succeeded: 1}, true, false},
		"ended by a fault":  {executor.Progress{Matched: 10, Outcome: executor.OutcomeBroken}, false, false},
		"ended as expected": {executor.Progress{Matched: 10, Outcome: executor.OutcomeExpired}, false, false},
	} {
		task.Spec.Cancel = c.cancel
		if got := decide(task, observation{now: due, product: readyProduct, progress: &c.progress}); got.deferrable != c.want {
			t.Errorf("%s: deferrable is %v", name, got.deferrable)
		}
	}
}

package testobj

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"batchtask.dev/operator/internal/executor"
)

// Executor stands in for the executor: it takes tasks and lets the test say how
// far each has come. A cancelled or suspended run ends at once.
type Executor struct {
	// Notify is told of every progress; it may be nil. It is set before use.
	Notify func(types.NamespacedName)
	// Started is told of every run that begins; it may be nil. What it returns is
	// the progress that the run begins with.
	Started func(executor.Task) executor.Progress

	mu    sync.Mutex
	runs  map[types.NamespacedName]*fakeRun
	begun map[types.UID][]executor.Task
	looks map[types.NamespacedName]int
}

type fakeRun struct {
	task     executor.Task
	progress executor.Progress
}

// Ensure implements the executor's part.
func (e *Executor) Ensure(task executor.Task) {
	e.mu.Lock()
	if old, ok := e.runs[task.NamespacedName]; ok && old.task.UID == task.UID {
		e.mu.Unlock()
		return
	}
	run := &fakeRun{task: task, progress: executor.Progress{
		Cursor: task.After, Matched: task.Matched, Succeeded: task.Succeeded, Failed: task.Failed, Failures: task.Failures,
	}}
	if e.runs == nil {
		e.runs, e.begun = map[types.NamespacedName]*fakeRun{}, map[types.UID][]executor.Task{}
	}
	if e.Started != nil {
		run.progress = e.Started(task)
	}
	e.runs[task.NamespacedName] = run
	e.begun[task.UID] = append(e.begun[task.UID], task)
	e.mu.Unlock()
	e.notify(task.NamespacedName)
}

// Progress implements the executor's part.
func (e *Executor) Progress(name types.NamespacedName, uid types.UID) (executor.Progress, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.looked(name)
	if run, ok := e.runs[name]; ok && run.task.UID == uid {
		return run.progress, true
	}
	return executor.Progress{}, false
}

// Cancel implements the executor's part.
func (e *Executor) Cancel(name types.NamespacedName, uid types.UID) {
	e.end(name, uid, executor.OutcomeCancelled)
}

// Suspend implements the executor's part.
func (e *Executor) Suspend(name types.NamespacedName, uid types.UID) {
	e.end(name, uid, executor.OutcomeSuspended)
}

func (e *Executor) end(name types.NamespacedName, uid types.UID, outcome executor.Outcome) {
	e.mu.Lock()
	run, ok := e.runs[name]
	ok = ok && run.task.UID == uid && run.progress.Outcome == executor.OutcomeNone
	if ok {
		run.progress.Outcome = outcome
	}
	e.mu.Unlock()
	if ok {
		e.notify(name)
	}
}

// Forget implements the executor's part.
func (e *Executor) Forget(name types.NamespacedName) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.looked(name)
	delete(e.runs, name)
}

func (e *Executor) looked(name types.NamespacedName) {
	if e.looks == nil {
		e.looks = map[types.NamespacedName]int{}
	}
	e.looks[name]++
}

// Looks returns how often Progress and Forget have been called for a task. A reconciler
// that looks at a task calls one of them: once for a task that waits or has finished.
func (e *Executor) Looks(name types.NamespacedName) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.looks[name]
}

// Working implements the executor's part.
func (e *Executor) Working(uid types.UID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, run := range e.runs {
		if run.task.UID == uid {
			return true
		}
	}
	return false
}

// Set says how far a task has come and tells its reconciler. It reports false
// when the task has no run.
func (e *Executor) Set(name types.NamespacedName, progress executor.Progress) bool {
	e.mu.Lock()
	run, ok := e.runs[name]
	if ok {
		run.progress = progress
	}
	e.mu.Unlock()
	if ok {
		e.notify(name)
	}
	return ok
}

// Runs returns the runs of a task that have begun, ended ones included.
func (e *Executor) Runs(uid types.UID) []executor.Task {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]executor.Task(nil), e.begun[uid]...)
}

func (e *Executor) notify(name types.NamespacedName) {
	if e.Notify != nil {
		e.Notify(name)
	}
}

// Saved implements the executor's part; nothing waits for it here.
func (e *Executor) Saved(types.NamespacedName, types.UID, uint64) {}

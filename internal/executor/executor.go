// Package executor carries tasks out: it streams the devices of a task from the
// fleet, serves each through the broker, and keeps exact count.
//
//	fleet.Scan ─▶ (shadow update) ─▶ publish, within the window ─▶ result ─▶ watermark ─▶ checkpoint
//
// A run keeps its progress in memory and tells its reconciler, about once a second
// and at least each half resend limit, that there is some; the reconciler alone
// writes the status and tells the run that it has. Memory does not grow with the
// fleet: a run holds at most one resend limit of devices.
package executor

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/mqtt"
)

// Defaults of Options.
const (
	DefaultWindow             = 1000
	DefaultCheckpointInterval = time.Second
	DefaultDrainTimeout       = 5 * time.Second
	DefaultPatience           = 30 * time.Second
	DefaultPageMemory         = 256 << 20
	// DefaultUnacknowledgedLimit is as many as a checkpoint can name: a planned stop then
	// still sends nothing twice but those.
	DefaultUnacknowledgedLimit = MaxPending
)

// Publisher sends messages and settles each once it is acknowledged, for as long
// as it is wanted.
type Publisher interface {
	Publish(ctx context.Context, d mqtt.Delivery) error
	Connected() bool
}

// Options of an Executor; zero values stand for the defaults.
type Options struct {
	// Window is how many messages may be on their way at once over all tasks.
	Window int
	// ResendLimit is the greatest number of devices of a task that a crash serves
	// twice: how far a run may be ahead of its last saved checkpoint. Checkpoints
	// are asked for as often as that takes. The default is Window.
	ResendLimit int
	// CheckpointInterval is how often a run tells that it has come further.
	CheckpointInterval time.Duration
	// DrainTimeout is how long a cancelled or suspended run waits for the
	// acknowledgements of what it has sent.
	DrainTimeout time.Duration
	// Patience is how long a run may take after its deadline or a cancel where the fleet
	// store does not answer; then it ends without it.
	Patience time.Duration
	// AckTimeout is how long a message keeps its place in the window without a result, at
	// least about a checkpoint interval. The default is that of the publisher's messages,
	// mqtt.DefaultAckTimeout.
	AckTimeout time.Duration
	// UnacknowledgedLimit is how many messages of a task may have no result after that
	// before it may send no more.
	UnacknowledgedLimit int
	Clock               clock.WithTicker
	Log                 logr.Logger
	// PageMemory is how many bytes of devices that have been read ahead are held, over all
	// tasks, beside a little for each.
	PageMemory int
	// Metrics are counted on; not shown anywhere when nil.
	Metrics *Metrics
}

// Executor runs tasks side by side.
type Executor struct {
	store     fleet.Store
	publisher Publisher
	notify    func(types.NamespacedName)
	opts      Options
	window    *Window
	metrics   *Metrics
	pages     *pageBudget

	ctx    context.Context //nolint:containedctx // the life of the runs, which outlive the calls that start them
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	runs     map[types.NamespacedName]*run
	draining bool

	made atomic.Uint64 // runs, until now
}

// New returns an executor. notify is called when a task has come further, at least
// about once a second, and when its run has ended; it must not block.
func New(ctx context.Context, store fleet.Store, publisher Publisher, notify func(types.NamespacedName), opts Options) *Executor {
	if opts.Window == 0 {
		opts.Window = DefaultWindow
	}
	if opts.ResendLimit == 0 {
		opts.ResendLimit = opts.Window
	}
	if opts.CheckpointInterval == 0 {
		opts.CheckpointInterval = DefaultCheckpointInterval
	}
	if opts.DrainTimeout == 0 {
		opts.DrainTimeout = DefaultDrainTimeout
	}
	if opts.Patience == 0 {
		opts.Patience = DefaultPatience
	}
	if opts.AckTimeout == 0 {
		opts.AckTimeout = mqtt.DefaultAckTimeout
	}
	if opts.UnacknowledgedLimit == 0 {
		opts.UnacknowledgedLimit = DefaultUnacknowledgedLimit
	}
	if opts.PageMemory == 0 {
		opts.PageMemory = DefaultPageMemory
	}
	if opts.Metrics == nil {
		opts.Metrics = NewMetrics(nil)
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	e := &Executor{
		pages: &pageBudget{size: opts.PageMemory, shown: opts.Metrics.pageBytes},
		store: store, publisher: publisher, notify: notify, opts: opts,
		metrics: opts.Metrics, window: NewWindow(opts.Window, opts.UnacknowledgedLimit, opts.Metrics.unacknowledged), runs: map[types.NamespacedName]*run{},
	}
	e.ctx, e.cancel = context.WithCancel(ctx)
	return e
}

// Ensure starts a run for the task unless it has one. A run of an object of the
// same name that has been deleted is dropped. While the executor drains it starts
// nothing.
func (e *Executor) Ensure(task Task) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if old, ok := e.runs[task.NamespacedName]; ok {
		if old.task.UID == task.UID {
			return
		}
		old.abandon()
		delete(e.runs, task.NamespacedName)
	}
	if e.draining || e.ctx.Err() != nil {
		return
	}
	r := newRun(e, task)
	e.runs[task.NamespacedName] = r
	e.wg.Go(r.loop)
}

// Progress returns how far the task's run has come; false if it has no run.
func (e *Executor) Progress(name types.NamespacedName, uid types.UID) (Progress, bool) {
	if r := e.run(name, uid); r != nil {
		return r.account.progress(), true
	}
	return Progress{}, false
}

// Saved tells that a checkpoint has been written, so that the run may go on that
// far beyond it. mark is that of its Progress.
func (e *Executor) Saved(name types.NamespacedName, uid types.UID, mark uint64) {
	if r := e.run(name, uid); r != nil {
		r.saved(mark)
	}
}

// Cancel ends the task's run for good, once what it has sent is acknowledged or
// the drain time-out has passed.
func (e *Executor) Cancel(name types.NamespacedName, uid types.UID) {
	if r := e.run(name, uid); r != nil {
		r.stop(OutcomeCancelled)
	}
}

// Suspend ends the task's run such that another may go on after its cursor.
func (e *Executor) Suspend(name types.NamespacedName, uid types.UID) {
	if r := e.run(name, uid); r != nil {
		r.stop(OutcomeSuspended)
	}
}

// Forget drops the task's run at once, ended or not: nothing more is sent.
func (e *Executor) Forget(name types.NamespacedName) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r, ok := e.runs[name]; ok {
		r.abandon()
		delete(e.runs, name)
	}
}

// Working reports whether the task with this UID has a run.
func (e *Executor) Working(uid types.UID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.runs {
		if r.task.UID == uid {
			return true
		}
	}
	return false
}

// Drain suspends all runs and waits until each has been forgotten, which its
// reconciler does when it has written the last checkpoint. A manager that shuts
// down calls it first, so that a planned restart sends nothing twice.
func (e *Executor) Drain(ctx context.Context) error {
	e.mu.Lock()
	e.draining = true
	for _, r := range e.runs {
		r.stop(OutcomeSuspended)
	}
	e.mu.Unlock()
	tick := e.opts.Clock.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		e.mu.Lock()
		left := len(e.runs)
		e.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-tick.C():
		case <-ctx.Done():
			return errors.New("some tasks have not written their last checkpoint: their last devices will be served again")
		}
	}
}

// Close ends all runs and waits for them.
func (e *Executor) Close() {
	e.cancel()
	e.mu.Lock()
	for name, r := range e.runs {
		r.abandon()
		delete(e.runs, name)
	}
	e.mu.Unlock()
	e.wg.Wait()
}

func (e *Executor) run(name types.NamespacedName, uid types.UID) *run {
	e.mu.Lock()
	r, ok := e.runs[name]
	e.mu.Unlock()
	if !ok || r.task.UID != uid || r.lost(nil) {
		return nil
	}
	return r
}

package e2e

import (
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// leaderChange is a way to lose a leader.
type leaderChange int

const (
	// standStill : the leader stands still until another has been elected, and then goes on.
	standStill leaderChange = iota
	// killed : it dies.
	killed
	// silence : no manager hears anything of the API server, for longer than a Lease is good.
	silence
)

// changes is what happens in a test of leader changes, and for how long the API server is
// silent. The soak (make soak) does more of it.
type changes struct {
	devices, rows int
	window        int
	list          []leaderChange
	silent        []time.Duration // one after the other; the last one stays
}

func plannedChanges(t *testing.T) changes {
	t.Helper()
	c := changes{
		devices: 2500, rows: 10_000, window: 200,
		list:   []leaderChange{standStill, killed, silence, standStill, killed},
		silent: []time.Duration{12 * time.Second},
	}
	text := os.Getenv("SOAK_CHANGES")
	if text == "" {
		return c
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("SOAK_CHANGES=%s: must be a number of leader changes", text)
	}
	c.devices, c.rows = 20_000, 200_000
	c.silent = []time.Duration{10 * time.Minute, 12 * time.Second}
	c.list = nil
	for i := range n {
		c.list = append(c.list, leaderChange(i%3))
	}
	return c
}

// The leader changes again and again in the middle of a task over Device objects, or over
// rows of a database: at the end each device has its result, no count has ever fallen,
// and each change has served no more than a resend limit of devices twice.
func TestLeaderChanges(t *testing.T) {
	planned := plannedChanges(t)
	t.Run("objects", func(t *testing.T) {
		testLeaderChanges(t, planned, newSite(t, names(planned.devices)...), planned.devices, nil)
	})
	t.Run("rows", func(t *testing.T) {
		s := newDBSite(t, pgtest.Start(t).Database(t), planned.rows)
		testLeaderChanges(t, planned, s.site, planned.rows, s)
	})
}

func testLeaderChanges(t *testing.T, planned changes, s *site, devices int, database *dbSite) {
	t.Helper()
	broker := mqtttest.StartMosquitto(t)
	tap := newTap(t, broker.URL())
	tap.letPass(0)
	line := newAPILine(t)
	managers := startReplicas(t, line, s.namespace, tap.url(), fmt.Sprintf("--publish-window=%d", planned.window), noResend)
	if database != nil {
		database.ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady, "")
	}
	watching := s.watchCounts("close")
	s.create(s.task("close").Publish("event", "close").Filter(".*").Obj())

	// Of what remains each change may use an equal part, so that the last one comes while
	// the task still runs.
	part := devices / (len(planned.list) + 1)
	silent := planned.silent
	for i, change := range planned.list {
		s.serveUpto(tap, "close", int64((i+1)*part), planned.window)
		tap.awaitHeld(t)
		before := s.get("close").Status.Checkpoint.Epoch
		leader := managers.leader()
		switch change {
		case standStill:
			leader.signal(t, syscall.SIGSTOP)
		case killed:
			leader.kill()
		case silence:
			line.fallSilent()
			<-time.After(silent[0])
			line.speak()
			silent = silent[min(1, len(silent)-1):]
		}
		eventually(t, "another leader to take the task over", func() (bool, string) {
			task := s.get("close")
			now := ""
			if task.Status.Checkpoint != nil {
				now = task.Status.Checkpoint.Epoch
			}
			return now != "" && now != before, describe(task)
		})
		if change == standStill {
			leader.signal(t, syscall.SIGCONT)
			tap.letMorePass(planned.window, math.MaxInt) // of its own messages: it would have room for others
		}
		managers.replace(leader)
		if task := s.get("close"); task.Status.Phase != v1alpha1.TaskPhaseProcessing {
			t.Fatalf("change %d: the task is not in its middle any more: %s", i, describe(task))
		}
	}
	tap.letAllPass()
	task := s.finished("close")
	wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: int64(devices), Succeeded: int64(devices)})
	wantEvidence(t, tap, devices, planned.window*len(planned.list))
	if database != nil {
		database.wantResults("close", devices)
	}
	watching()
	t.Logf("%d changes of leader", len(planned.list))
}

func (m *process) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := m.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// serveUpto lets acknowledgements pass until so many devices are counted, and then no more.
// The status follows a second behind, so it looks at the devices whose acknowledgements have
// passed. Some of these were for managers that have died, nobody can say how many: when the
// counts stand still, a few more pass.
func (s *site) serveUpto(tap *tap, name string, n int64, step int) {
	s.t.Helper()
	const still = 3 * time.Second
	last := time.Now()
	eventually(s.t, fmt.Sprintf("%d devices to be counted", n), func() (bool, string) {
		task := s.get(name)
		if task.Status.Counts().Succeeded >= n {
			tap.letMorePass(0, math.MaxInt)
			return true, ""
		}
		switch {
		case tap.devices() < int(n):
			tap.letMorePass(step, math.MaxInt)
			last = time.Now()
		case time.Since(last) >= still:
			tap.letMorePass(step, math.MaxInt)
			last = time.Now()
		}
		return false, describe(task)
	})
}

// watchCounts watches a task that is to be created, and returns what ends that: it fails
// the test if a count has fallen from one revision to the next.
func (s *site) watchCounts(name string) (end func()) {
	s.t.Helper()
	events, err := s.client.Watch(context.WithoutCancel(s.t.Context()), &v1alpha1.BatchTaskList{}, client.InNamespace(s.namespace))
	if err != nil {
		s.t.Fatal(err)
	}
	var watching sync.WaitGroup
	var last v1alpha1.BatchTaskStatus
	finished := make(chan struct{})
	watching.Go(func() {
		for event := range events.ResultChan() {
			task, ok := event.Object.(*v1alpha1.BatchTask)
			if !ok || task.Name != name {
				continue
			}
			was, is := last.Counts(), task.Status.Counts()
			if is.Succeeded < was.Succeeded || is.Failed < was.Failed {
				s.t.Errorf("counts have fallen from %+v to %+v, written by %+v after %+v", was, is, task.Status.Checkpoint, last.Checkpoint)
			}
			wasFinished := last.Phase.Finished()
			if last = task.Status; last.Phase.Finished() && !wasFinished {
				close(finished)
			}
		}
	})
	stop := sync.OnceFunc(func() {
		events.Stop()
		watching.Wait()
	})
	s.t.Cleanup(stop)
	return func() {
		s.t.Helper()
		select {
		case <-finished:
		case <-time.After(patience):
			s.t.Error("the watch has not shown the end of the task")
		}
		stop()
	}
}

package controllers

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/testobj"
)

func updateShadowTask(matched int64) *v1alpha1.BatchTask {
	task := testobj.BatchTask("t").UpdateShadow(`{"a":1}`).Obj()
	task.UID = "uid"
	task.Status.StartTime = &metav1.Time{Time: time.Unix(1_700_000_000, 0)}
	task.Status.Phase = v1alpha1.TaskPhaseProcessing
	task.Status.Devices = &v1alpha1.DeviceCounts{Matched: matched}
	return task
}

// Devices that go are still counted, and each once, whoever has counted them before.
func TestAcknowledgedTotal(t *testing.T) {
	type step struct {
		what      string
		newLeader bool // which has read the status that was last written
		written   bool // what comes out of the step before was not written, if false
		devices   int64
		gone      int64 // since this leader's store was first asked
		total     bool
		want      int64
		wantGone  int64
	}
	for name, steps := range map[string][]step{
		"forgotten": {
			{"half of them", true, true, 50, 0, false, 50, 0},
			{"which forget it", false, true, 0, 50, false, 50, 50},
			{"the other half", false, true, 50, 50, false, 100, 50},
		},
		"another leader": {
			{"half of them", true, true, 50, 0, false, 50, 0},
			{"which forget it", false, true, 0, 50, false, 50, 50},
			{"nothing has changed", true, true, 0, 0, false, 50, 50},
			{"one more, and it goes", false, true, 0, 1, false, 51, 51},
			{"the rest", false, true, 49, 1, false, 100, 51},
			{"nothing has changed", true, true, 49, 0, false, 100, 51},
		},
		"they went while nobody watched": {
			{"half of them", true, true, 50, 0, false, 50, 0},
			{"twenty are deleted", true, true, 30, 0, false, 50, 20},
			{"the other half", false, true, 80, 0, false, 100, 20},
		},
		"more came while nobody watched": {
			{"half of them", true, true, 50, 0, false, 50, 0},
			{"forgotten", false, true, 10, 40, false, 50, 40},
			{"five more", true, true, 15, 0, false, 55, 40},
		},
		"the last write was not made": {
			{"half of them", true, true, 50, 0, false, 50, 0},
			{"forgotten", false, true, 10, 40, false, 50, 40},
			{"the leader has died before it wrote that", true, false, 10, 0, false, 50, 40},
			{"the other half", false, true, 60, 0, false, 100, 40},
		},
		"asked before this leader was one": {
			{"a stranger has asked, and three went", true, true, 7, 3, false, 7, 0},
			{"one more went", false, true, 6, 4, false, 7, 1},
		},
		"a database": {
			{"half of them", true, true, 50, 0, true, 50, 0},
			{"the other half", true, true, 100, 0, true, 100, 0},
			{"restored from a copy", true, true, 60, 0, true, 100, 0},
			{"again", false, true, 70, 0, true, 100, 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			task := updateShadowTask(100)
			var last struct{ total, gone int64 }
			leader := &totals{}
			for _, s := range steps {
				if s.written {
					task.Status.Devices.Acknowledged, task.Status.AcknowledgedGone = last.total, last.gone
				}
				if s.newLeader {
					leader = &totals{}
				}
				last.total, last.gone = leader.add(task, fleet.Acknowledged{Devices: s.devices, Gone: s.gone, Total: s.total}, time.Unix(1_700_000_000, 0))
				if last.total != s.want || last.gone != s.wantGone {
					t.Errorf("%s: %d and %d gone, want %d and %d", s.what, last.total, last.gone, s.want, s.wantGone)
				}
			}
		})
	}
}

// A finished task has no more acknowledgements than devices.
func TestAcknowledgedAtMostMatched(t *testing.T) {
	task := updateShadowTask(10)
	task.Status.Phase = v1alpha1.TaskPhaseDone
	if got, _ := new(totals).add(task, fleet.Acknowledged{Devices: 9, Gone: 2}, time.Time{}); got != 9 {
		t.Errorf("%d of a stranger's count, want 9", got)
	}
	var leader totals
	leader.add(task, fleet.Acknowledged{Devices: 9}, time.Time{})
	if got, _ := leader.add(task, fleet.Acknowledged{Devices: 9, Gone: 2}, time.Time{}); got != 10 {
		t.Errorf("%d of 10 matched", got)
	}
}

// A task that has finished is looked at ever more rarely, and in the end no more.
func TestAcknowledgedDue(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	task := updateShadowTask(10)
	var leader totals
	looks := func(within time.Duration) (n int) {
		for end := now.Add(within); now.Before(end); now = now.Add(acknowledgedEvery) {
			if leader.due(task, now, false) {
				leader.add(task, fleet.Acknowledged{}, now)
				n++
			}
			leader.forget()
		}
		return n
	}
	if got := looks(time.Hour); got != 1200 {
		t.Errorf("%d looks in an hour while it runs, want each time", got)
	}
	task.Status.Phase = v1alpha1.TaskPhaseDone
	task.Status.CompletionTime = &metav1.Time{Time: now}
	first, hour := looks(3*time.Minute), looks(time.Hour)
	day, month := looks(24*time.Hour), looks(29*24*time.Hour)
	if first < 50 || hour < 60 || hour > 300 || day > 250 || month > 250 {
		t.Errorf("%d looks in three minutes, %d in the hour after, %d in the day, %d in the month", first, hour, day, month)
	}
	if got := looks(24 * time.Hour); got > 1 {
		t.Errorf("%d looks after a month", got)
	}
	task.Status.CompletionTime = &metav1.Time{Time: now.Add(-time.Hour)}
	if !leader.due(task, now, true) {
		t.Error("not looked at when the leader ends")
	}
	task.Status.Devices.Acknowledged = 10
	if leader.due(task, now, true) {
		t.Error("looked at although all have acknowledged")
	}
	leader.forget()
	leader.forget()
	if len(leader.tasks) != 0 {
		t.Error("a task that nobody asks for is remembered")
	}
}

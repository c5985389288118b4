package main

import (
	"fmt"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"batchtask.dev/operator/internal/lease"
)

// election is what a process is elected by, if replicas elect one.
type election struct {
	lease  *lease.Lease
	lock   resourcelock.Interface // nil without --leader-elect
	events *leaderEvents
}

// newElection prepares an election by the Lease of that name. It differs from the one that
// a manager prepares for itself in that the Lease is watched.
func (o *commonOptions) newElection(name string) (election, error) {
	identity, err := lease.Identity()
	if err != nil {
		return election{}, err
	}
	if !o.leaderElect {
		return election{lease: lease.Sole(identity)}, nil
	}
	cfg, err := ctrl.GetConfig()
	if err != nil {
		return election{}, fmt.Errorf("find the API server: %w", err)
	}
	cfg = rest.AddUserAgent(rest.CopyConfig(cfg), "leader-election")
	// One answer that does not come must not cost the Lease.
	cfg.Timeout = max(o.renewDeadline/2, time.Second)
	clientset, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return election{}, fmt.Errorf("set up the client of the leader election: %w", err)
	}
	e := election{lease: lease.Elected(identity, o.renewDeadline, clock.RealClock{}), events: &leaderEvents{}}
	lock, err := resourcelock.New(resourcelock.LeasesResourceLock, o.namespace, name, clientset.CoreV1(), clientset.CoordinationV1(),
		resourcelock.ResourceLockConfig{Identity: identity, EventRecorder: e.events})
	if err != nil {
		return election{}, fmt.Errorf("set up the leader election: %w", err)
	}
	e.lock = e.lease.Watch(lock)
	return e, nil
}

// leaderEvents records who became leader, once there is a manager that can.
type leaderEvents struct{ record.EventRecorder }

func (e election) recordIn(mgr manager.Manager) {
	if e.events != nil {
		e.events.EventRecorder = mgr.GetEventRecorderFor("batchtask-manager") //nolint:staticcheck // the lock takes no other
	}
}

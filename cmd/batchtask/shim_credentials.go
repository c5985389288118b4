package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"batchtask.dev/operator/internal/shim"
)

// credentialsWait is how long the others wait for a namespace whose Secrets cannot be read.
const credentialsWait = 15 * time.Second

// watchCredentials feeds the accounts from the Secrets of the namespaces, of all if there are
// none named. Each namespace is watched on its own: one that is gone, or in which the role is
// not bound, keeps no other from being served. synced reports whether all have been read, or
// those that can be.
func watchCredentials(ctx context.Context, mgr ctrl.Manager, accounts *shim.Accounts, namespaces []string) (synced func() bool, err error) {
	groups := [][]string{nil}
	if len(namespaces) > 0 {
		groups = nil
		for _, namespace := range namespaces {
			groups = append(groups, []string{namespace})
		}
	}
	waiting := map[string]func() bool{}
	recorder := mgr.GetEventRecorder("batchtask-shim")
	for _, group := range groups {
		secrets, err := cache.New(mgr.GetConfig(), cache.Options{
			HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
			ByObject: map[client.Object]cache.ByObject{&corev1.Secret{}: shim.SecretCache(group)},
		})
		if err != nil {
			return nil, fmt.Errorf("watch the Secrets of namespaces %q: %w", group, err)
		}
		name := "all namespaces"
		if group != nil {
			name = group[0]
		}
		if waiting[name], err = accounts.Watch(ctx, secrets, recorder); err != nil {
			return nil, err
		}
		if err := mgr.Add(replicaCache{secrets}); err != nil {
			return nil, fmt.Errorf("watch the Secrets of namespaces %q: %w", group, err)
		}
	}
	return syncedOrLate(logr.FromContextOrDiscard(ctx), waiting, time.Now), nil
}

// syncedOrLate reports whether all are synced or, some time after the first was asked, some are.
// The log is told once who is late then.
func syncedOrLate(log logr.Logger, waiting map[string]func() bool, now func() time.Time) func() bool {
	var mu sync.Mutex
	var began time.Time
	all, told := len(waiting), false
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		if began.IsZero() {
			began = now()
		}
		for name, synced := range waiting {
			if synced() {
				delete(waiting, name)
			}
		}
		if len(waiting) == 0 {
			return true
		}
		if now().Sub(began) < credentialsWait || len(waiting) == all {
			return false
		}
		if !told {
			told = true
			for name := range waiting {
				log.Info("A namespace of --namespaces is not served yet: its Secrets cannot be read; is the ClusterRole batchtask-shim bound in it?", "namespace", name)
			}
		}
		return true
	}
}

// replicaCache is a cache of every replica, for which nobody waits at the start.
type replicaCache struct{ cache.Cache }

var _ manager.LeaderElectionRunnable = replicaCache{}

// NeedLeaderElection implements [manager.LeaderElectionRunnable].
func (replicaCache) NeedLeaderElection() bool { return false }

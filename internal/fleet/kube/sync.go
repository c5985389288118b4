package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
)

const (
	// syncPage is how many objects Sync reads: up to so many devices in a namespace,
	// it compares each of them.
	syncPage = 500
	// syncRelist is after which time Sync looks at the live objects again, in case
	// they have changed so that the comparison cannot succeed.
	syncRelist = 3 * time.Second
	// syncTimeout is after which time Sync gives up. Then the watch is broken, and
	// the caller had better see an error than wait.
	syncTimeout = 10 * time.Second
)

var errBehind = errors.New("the watch on devices is behind the API server")

// snapshot is what a live list says of a namespace.
type snapshot struct {
	version  uint64            // resourceVersion of the list; 0 if it cannot be read
	total    int64             // objects in the namespace; -1 if not known
	versions map[string]uint64 // resourceVersion by metadata.name; all objects if they are at most syncPage
}

// Sync implements [fleet.Store]. It gives up after ten seconds, or when ctx ends.
//
// A watch lags behind the API server, by milliseconds as a rule and by half a
// minute after a broken connection, so a task may be seen before a device that
// was created before it. Sync therefore asks the API server for the first page of
// the devices of the namespace, by a consistent read, and waits until the index
// agrees with it:
//
//   - it holds as many objects as there are, and each object of the page in that or
//     a later version; or
//   - it holds at least as many, and has taken an event of the version of the list
//     or a later one. Events come in the order of versions, so all those before
//     have been taken. (After a broken watch the informer lists anew, and the
//     events of that list come in any order; that is why the number must agree.)
//
// The second way is for a fleet that changes all the time, where the numbers
// never agree. In a quiet one there is no event of so late a version, for versions
// count the writes of all resources.
//
// For a namespace with at most 500 devices this leaves no gap, but one: while the informer
// lists anew after a broken watch, and a device is written at that moment, a change before
// it that leaves the number as it was can still be on its way. In a larger one,
// devices past the first page are only counted, so what can be missed is that as
// many were deleted as created, or that one was disabled or enabled, in the time
// by which the watch is behind at that moment. To close that too would take a list
// of all devices for each task.
func (s *Store) Sync(ctx context.Context, namespace string) error {
	if err := s.sync(ctx, namespace); err != nil {
		return fmt.Errorf("waiting for the devices of namespace %s: %w", namespace, err)
	}
	return nil
}

func (s *Store) sync(ctx context.Context, namespace string) error {
	timeout := s.clock.NewTimer(syncTimeout)
	defer timeout.Stop()
	select {
	case <-s.synced:
	case <-timeout.C():
		return errBehind
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		want, err := s.snapshot(ctx, namespace)
		if err != nil {
			return err
		}
		relist := s.clock.NewTimer(syncRelist)
		defer relist.Stop() // at most four times
		for stale := false; !stale; {
			// Before the comparison, so that no event is missed between the two.
			changed := s.index.next()
			if s.index.agrees(namespace, want) {
				return nil
			}
			select {
			case <-changed:
			case <-relist.C():
				stale = true
			case <-timeout.C():
				return errBehind
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// snapshot asks the API server, not its cache of an unknown age: a list without a
// resourceVersion is consistent.
func (s *Store) snapshot(ctx context.Context, namespace string) (snapshot, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("DeviceList"))
	if err := s.live.List(ctx, list, client.InNamespace(namespace), client.Limit(syncPage)); err != nil {
		return snapshot{}, fmt.Errorf("listing the first devices: %w", err)
	}
	found := snapshot{
		version:  parseVersion(list.ResourceVersion),
		total:    int64(len(list.Items)),
		versions: make(map[string]uint64, len(list.Items)),
	}
	for i := range list.Items {
		found.versions[list.Items[i].Name] = parseVersion(list.Items[i].ResourceVersion)
	}
	if list.Continue != "" {
		if list.RemainingItemCount == nil {
			found.total = -1
		} else {
			found.total += *list.RemainingItemCount
		}
	}
	return found, nil
}

// agrees reports whether the index has taken everything that was written before a
// snapshot was made; see Sync.
func (x *index) agrees(namespaceName string, want snapshot) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	var objects map[string]*entry
	if namespace := x.namespaces[namespaceName]; namespace != nil {
		objects = namespace.objects
	}
	if want.version > 0 && x.seen >= want.version && int64(len(objects)) >= want.total {
		return true
	}
	if int64(len(objects)) != want.total {
		return false
	}
	for name, version := range want.versions {
		if known := objects[name]; known == nil || known.version < version {
			return false
		}
	}
	return true
}

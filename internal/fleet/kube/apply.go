package kube

import (
	"context"
	"errors"
	"fmt"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// conflictAttempts is how often a shadow is read and written before a conflict
// with other writers is handed to the caller.
const conflictAttempts = 5

// ApplyDesired implements [fleet.Store].
func (s *Store) ApplyDesired(ctx context.Context, p fleet.Product, u fleet.DesiredUpdate, names []string) []fleet.DesiredResult {
	results := make([]fleet.DesiredResult, len(names))
	if err := s.ready(); err != nil {
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	var running sync.WaitGroup
	for i, name := range names {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			results[i].Err = fmt.Errorf("updating the shadow of device %s: %w", name, ctx.Err())
			continue
		}
		running.Go(func() {
			defer func() { <-s.slots }()
			results[i].Delta, results[i].Err = s.applyOne(ctx, p, u, name)
		})
	}
	running.Wait()
	return results
}

func (s *Store) applyOne(ctx context.Context, p fleet.Product, u fleet.DesiredUpdate, name string) ([]byte, error) {
	var err error
	for range conflictAttempts {
		var delta []byte
		delta, err = s.tryOne(ctx, p, u, name)
		if !apierrors.IsConflict(err) {
			return delta, err
		}
	}
	return nil, err
}

// tryOne reads a shadow, and writes it back changed if nobody else has in between.
func (s *Store) tryOne(ctx context.Context, p fleet.Product, u fleet.DesiredUpdate, name string) ([]byte, error) {
	// The names come from the index, so one that it does not know any more has been
	// deleted. When the object is gone and the index still knows it, the index is about
	// to learn of it: the error is passing, and the next attempt finds the device gone,
	// or the next oldest object of that name.
	object, uid, ok := s.index.object(p, name)
	if !ok {
		return nil, fleet.ErrDeviceGone
	}
	device := &v1alpha1.Device{}
	if err := s.live.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: object}, device); err != nil {
		return nil, fmt.Errorf("reading device %s: %w", object, err)
	}
	if device.UID != uid {
		return nil, fmt.Errorf("reading device %s: it is not the object of device name %s any more", object, name)
	}
	applied, err := u.Apply(stored(device.Status.Shadow))
	if err != nil {
		return nil, err
	}
	if !applied.Write {
		return applied.Delta, nil
	}
	// A patch and not an update: what a later version of the API keeps in the status
	// beside the shadow, this type does not know and an update would drop. The patch
	// names the resourceVersion, so it fails with a conflict where the object was
	// changed, or deleted and made anew.
	before := device.DeepCopy()
	device.Status.Shadow = written(applied.Shadow)
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := s.live.Status().Patch(ctx, device, patch); err != nil {
		if apierrors.IsInvalid(err) {
			// The API server refuses the content, so it would the next time.
			return nil, &fleet.DeviceError{Reason: v1alpha1.ReasonInvalidShadow, Message: refusal(err)}
		}
		return nil, fmt.Errorf("writing the shadow of device %s: %w", object, err)
	}
	return applied.Delta, nil
}

// refusal names the fields that the API server found invalid. Its own message may
// quote their values.
func refusal(err error) string {
	message := "the API server refuses to store the shadow"
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Details != nil {
		for _, cause := range status.Status().Details.Causes {
			message += fmt.Sprintf("; %s: %s", cause.Field, cause.Type)
		}
	}
	return message
}

// stored converts from the API type; nil is a shadow never written.
func stored(s *v1alpha1.DeviceShadow) fleet.Shadow {
	if s == nil {
		return fleet.Shadow{}
	}
	return fleet.Shadow{
		Stored: shadow.Stored{
			Reported:  s.Reported,
			Desired:   s.Desired,
			Metadata:  s.Metadata,
			Version:   s.Version,
			Timestamp: s.Timestamp,
		},
		AppliedTasks: s.AppliedTasks,
	}
}

// written converts to the API type.
func written(s fleet.Shadow) *v1alpha1.DeviceShadow {
	return &v1alpha1.DeviceShadow{
		Reported:     s.Reported,
		Desired:      s.Desired,
		Metadata:     s.Metadata,
		Version:      s.Version,
		Timestamp:    s.Timestamp,
		AppliedTasks: s.AppliedTasks,
	}
}

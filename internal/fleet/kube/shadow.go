package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// conflicts is how often a shadow is read and written before a conflict with other
// writers is handed to the caller, and the pauses in between: 36 ms in all, and up to as
// much again by chance.
var conflicts = wait.Backoff{Steps: 5, Duration: 2 * time.Millisecond, Factor: 2, Jitter: 1}

// ReadShadow implements [fleet.Store]. It asks the API server, as every write does.
func (s *Store) ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error) {
	if err := s.ready(); err != nil {
		return fleet.Shadow{}, err
	}
	device, err := s.read(ctx, p, name)
	if err != nil {
		return fleet.Shadow{}, err
	}
	return stored(device.Status.Shadow), nil
}

// ChangeShadow implements [fleet.Store].
func (s *Store) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	if err := s.ready(); err != nil {
		return err
	}
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("updating the shadow of device %s: %w", name, ctx.Err())
	}
	defer func() { <-s.slots }()
	return s.change(ctx, p, name, change)
}

func (s *Store) change(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	return changeShadow(ctx, s.live, func() (*v1alpha1.Device, error) { return s.read(ctx, p, name) }, change)
}

// changeShadow changes the shadow of the device that read returns, as it is at the
// API server now.
func changeShadow(ctx context.Context, live client.StatusClient, read func() (*v1alpha1.Device, error), change func(fleet.Shadow) (fleet.Shadow, error)) error {
	pauses := conflicts
	for {
		err := tryChange(ctx, live, read, change)
		if !errors.Is(err, errOutdated) {
			return err
		}
		pause := pauses.Step()
		if pauses.Steps == 0 {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// errOutdated : the object was changed since it was read.
var errOutdated = fmt.Errorf("%w: the object was changed meanwhile", fleet.ErrConflict)

// tryChange reads a shadow, and writes it back changed if nobody else has in between.
func tryChange(ctx context.Context, live client.StatusClient, read func() (*v1alpha1.Device, error), change func(fleet.Shadow) (fleet.Shadow, error)) error {
	device, err := read()
	if err != nil {
		return err
	}
	was := stored(device.Status.Shadow)
	is, err := change(was)
	if err != nil {
		return err
	}
	if is.Equal(was) {
		return nil
	}
	// A patch and not an update: what a later version of the API keeps in the status
	// beside the shadow, this type does not know and an update would drop. The patch
	// names the resourceVersion, so it fails with a conflict where the object was
	// changed, or deleted and made anew.
	before := device.DeepCopy()
	device.Status.Shadow = written(is)
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := live.Status().Patch(ctx, device, patch); err != nil {
		switch {
		case apierrors.IsInvalid(err):
			// The API server refuses the content, so it would the next time.
			return &fleet.DeviceError{Reason: v1alpha1.ReasonInvalidShadow, Message: refusal(err)}
		case apierrors.IsConflict(err):
			err = errOutdated
		case apierrors.IsNotFound(err):
			err = errDeleted
		}
		return fmt.Errorf("writing the shadow of device %s: %w", device.Name, err)
	}
	return nil
}

// read returns the object that counts for a device, as it is now.
func (s *Store) read(ctx context.Context, p fleet.Product, name string) (*v1alpha1.Device, error) {
	// The index knows the names, so one that it does not know, or not any more, is no
	// device. When the object is gone and the index still knows it, the index is about
	// to learn of it: the error is passing, and the next attempt finds the device gone,
	// or the next oldest object of that name.
	object, uid, ok := s.index.object(p, name)
	if !ok {
		return nil, fleet.ErrDeviceGone
	}
	device := &v1alpha1.Device{}
	if err := s.live.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: object}, device); err != nil {
		if apierrors.IsNotFound(err) {
			err = errDeleted
		}
		return nil, fmt.Errorf("reading device %s: %w", object, err)
	}
	if device.UID != uid {
		return nil, fmt.Errorf("reading device %s: %w: it is not the object of device name %s any more", object, fleet.ErrConflict, name)
	}
	return device, nil
}

// errDeleted : the object of a device is gone. Whoever calls gets no NotFound of the API
// server, which could be that of any object on the way, a Secret of a database say.
var errDeleted = fmt.Errorf("%w: the object was deleted meanwhile", fleet.ErrConflict)

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
		Acknowledged: int(s.Acknowledged),
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
		Acknowledged: int32(s.Acknowledged), //nolint:gosec // at most MaxAppliedTasks
	}
}

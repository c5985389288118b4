package shim

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"

	"batchtask.dev/operator/api/v1alpha1"
)

// Pauses between attempts of a write that others were quicker with.
const (
	firstPause   = 5 * time.Millisecond
	longestPause = 500 * time.Millisecond
)

// pause waits before the next attempt, longer with each and never as long as another would, or
// returns why ctx ended.
func pause(ctx context.Context, attempt int) error {
	length := wait.Jitter(min(firstPause<<min(attempt, 10), longestPause), 1)
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// overtaken reports whether a write of a Device failed because others wrote it first, or
// deleted it. What else cannot be found, such as a Secret on the way to the Device, is found no
// sooner for being looked for again.
func overtaken(err error) bool {
	var refused apierrors.APIStatus
	if !errors.As(err, &refused) || refused.Status().Details == nil || refused.Status().Details.Group != v1alpha1.GroupVersion.Group {
		return false
	}
	return apierrors.IsConflict(err) || apierrors.IsNotFound(err) && refused.Status().Details.Kind == "devices"
}

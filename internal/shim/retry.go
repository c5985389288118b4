package shim

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
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

package controllers

import (
	"context"
	"time"

	"k8s.io/utils/clock"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
)

// periodically calls do again and again until ctx ends. An error is logged, and the
// next call is another try.
func periodically(ctx context.Context, clk clock.WithTicker, every time.Duration, failed string, do func(context.Context) error) error {
	tick := clk.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C():
			if err := do(ctx); err != nil && ctx.Err() == nil {
				logf.FromContext(ctx).Error(err, failed)
			}
		}
	}
}

package shim

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/taskid"
	"batchtask.dev/operator/internal/testobj"
)

// refusing are shadows whose changes fail a number of times.
type refusing struct {
	Shadows
	err   error
	times int
	calls int
}

func (r *refusing) ChangeShadow(_ context.Context, _ fleet.Product, _ string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	if r.calls++; r.calls <= r.times {
		return r.err
	}
	_, err := change(fleet.Shadow{})
	return err
}

// A change that others were faster with is tried again, with pauses, for as long as the
// call may take; one that has failed for anything else is not, also where that is a
// NotFound or a Conflict of another object.
func TestChangeAgain(t *testing.T) {
	secrets := schema.GroupResource{Resource: "secrets"}
	for name, tt := range map[string]struct {
		err              error
		times            int
		wantErr          bool
		minCalls, atMost int
	}{
		"others were faster":              {fmt.Errorf("writing: %w", fleet.ErrConflict), 3, false, 4, 4},
		"others are faster for ever":      {fmt.Errorf("writing: %w", fleet.ErrConflict), 1e9, true, 10, 200},
		"the Secret of a database is not": {fmt.Errorf("read Secret: %w", apierrors.NewNotFound(secrets, "s")), 1e9, true, 1, 1},
		"a Conflict of something else":    {fmt.Errorf("open: %w", apierrors.NewConflict(secrets, "s", errors.New("x"))), 1e9, true, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				shadows := &refusing{err: tt.err, times: tt.times}
				d := devices{shadows: shadows, clock: clock.RealClock{}}
				_, err := d.change(ctx, account{}, qcloud.Device{DeviceName: "d"}, shadow.Update{Desired: shadow.Object{"a": true}})
				if (err != nil) != tt.wantErr || shadows.calls < tt.minCalls || shadows.calls > tt.atMost {
					t.Errorf("%d calls, error %v; want %d to %d calls, an error: %t", shadows.calls, err, tt.minCalls, tt.atMost, tt.wantErr)
				}
			})
		})
	}
}

// So is the cancelling of a task.
func TestCancelAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scheme := runtime.NewScheme()
		if err := v1alpha1.AddToScheme(scheme); err != nil {
			t.Fatal(err)
		}
		id := taskid.New(time.Now())
		patches := 0
		c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(testobj.BatchTask(id).In("ns").Obj()).WithInterceptorFuncs(interceptor.Funcs{
			Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
				patches++
				return apierrors.NewConflict(schema.GroupResource{Resource: "batchtasks"}, id, errors.New("x"))
			},
		}).Build()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := tasks{client: c, clock: clock.RealClock{}}.cancel(ctx, account{namespace: "ns"}, &qcloud.CancelTask{ID: id})
		if err == nil || patches < 10 || patches > 200 {
			t.Errorf("%d patches in ten seconds, error %v", patches, err)
		}
	})
}

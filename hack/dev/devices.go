package main

import (
	"context"
	"fmt"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/hack/simulator"
)

const (
	productID  = "ABCDE12345" // of the examples in CreateTask
	topic      = "event"
	minDevices = 10
	maxDevices = 20000
	// maxShadows is how many devices look after their shadows: each report is a write
	// of an object, of which an API server on a small machine does a hundred a second.
	maxShadows = 1000
	// parallelCreates is how many objects are created at once.
	parallelCreates = 32
)

// sampleDevices are those of config/samples/devices.yaml.
var sampleDevices = []string{"front-door", "back-door", "door-1", "window-1"}

// deviceNames returns n names: those of the samples, and others of which the
// filters "door$" and "^door" match one half each.
func deviceNames(n int) []string {
	names := append([]string(nil), sampleDevices...)
	for i := 0; len(names) < n; i++ {
		format := "door-%04d"
		if i%2 == 1 {
			format = "hall-%04d-door"
		}
		names = append(names, fmt.Sprintf(format, i/2+1))
	}
	return names
}

// shadows says how many of the devices, from the first, look after their shadows.
func (s *settings) shadows() int { return min(s.devices, maxShadows) }

// howMany says the same in words.
func (s *settings) howMany() string {
	if n := s.shadows(); n < s.devices {
		return fmt.Sprintf("the first %d of them", n)
	}
	return "all"
}

// createFleet applies the sample product and devices, creates the other devices,
// and connects a simulated device for each, except for those that are offline.
func createFleet(ctx context.Context, s *settings, env *localenv.Env, offline ...string) (*simulator.Fleet, error) {
	for _, file := range []string{"product.yaml", "devices.yaml"} {
		if _, err := apply(ctx, env, filepath.Join(s.root, "config", "samples", file)); err != nil {
			return nil, err
		}
	}
	names := deviceNames(s.devices)
	group, creating := errgroup.WithContext(ctx)
	group.SetLimit(parallelCreates)
	for _, name := range names {
		group.Go(func() error {
			err := env.Client.Create(creating, &v1alpha1.Device{
				ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: env.Namespace},
				Spec:       v1alpha1.DeviceSpec{ProductID: productID, DeviceName: name},
			})
			if err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("creating device %q: %w", name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return simulator.Start(ctx, simulator.Options{
		BrokerURL: env.MQTTURL, ProductID: productID, Names: names, Topics: []string{topic}, Shadows: s.shadows(), Offline: offline,
	})
}

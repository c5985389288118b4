package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
)

// writers is how many objects are written at once where many are.
const writers = 32

// forAll calls do for 0 to n-1, by so many writers at once, until one fails.
func forAll(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	group, working := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for i := range n {
		if working.Err() != nil {
			break
		}
		group.Go(func() error { return do(working, i) })
	}
	return errors.Join(group.Wait(), ctx.Err())
}

// deviceNames are names of one length, in their order.
func deviceNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("door-%07d", i)
	}
	return names
}

// makeDevices makes the product and its devices as objects.
func makeDevices(ctx context.Context, env *localenv.Env, names []string) error {
	progress(fmt.Sprintf("making %d devices", len(names)))
	if err := env.Client.Create(ctx, newProduct(env.Namespace, productID)); err != nil {
		return fmt.Errorf("create product: %w", err)
	}
	return forAll(ctx, len(names), func(ctx context.Context, i int) error {
		return makeDevice(ctx, env, env.Namespace, productID, names[i])
	})
}

func newProduct(namespace, productID string) *v1alpha1.Product {
	return &v1alpha1.Product{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: productName},
		Spec:       v1alpha1.ProductSpec{ProductID: productID},
	}
}

func makeDevice(ctx context.Context, env *localenv.Env, namespace, productID, name string) error {
	device := &v1alpha1.Device{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       v1alpha1.DeviceSpec{ProductID: productID, DeviceName: name},
	}
	if err := env.Client.Create(ctx, device); err != nil {
		return fmt.Errorf("create device %s/%s: %w", namespace, name, err)
	}
	return nil
}

// awaitProduct waits until tasks of the product may run.
func awaitProduct(ctx context.Context, env *localenv.Env, product *v1alpha1.Product) error {
	return poll(ctx, 20*time.Millisecond, func() error {
		if err := env.Client.Get(ctx, client.ObjectKeyFromObject(product), product); err != nil {
			return fmt.Errorf("read product %s/%s: %w", product.Namespace, product.Name, err)
		}
		if !meta.IsStatusConditionTrue(product.Status.Conditions, v1alpha1.ConditionReady) {
			return fmt.Errorf("product %s/%s is not ready: %+v", product.Namespace, product.Name, product.Status.Conditions)
		}
		return nil
	})
}

package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/hack/simulator"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/product"
)

// The product whose devices are in a database.
const (
	databaseProduct   = "meter"
	databaseProductID = "METER00001"
	databaseDevices   = 100
)

// createDatabaseFleet imports devices into the database, makes a product of them, and
// connects a simulated device for each. Tasks may run on the product then.
func createDatabaseFleet(ctx context.Context, env *localenv.Env) (*simulator.Fleet, error) {
	names := make([]string, databaseDevices)
	for i := range names {
		names[i] = fmt.Sprintf("meter-%04d", i+1)
	}
	if err := importDevices(ctx, env, names); err != nil {
		return nil, err
	}
	p := &v1alpha1.Product{
		ObjectMeta: metav1.ObjectMeta{Name: databaseProduct, Namespace: env.Namespace},
		Spec: v1alpha1.ProductSpec{
			ProductID: databaseProductID, Topics: []string{topic},
			Fleet: v1alpha1.Fleet{
				Type:     v1alpha1.FleetTypePostgres,
				Postgres: &v1alpha1.PostgresFleet{SecretRef: v1alpha1.SecretReference{Name: databaseProduct + "-database"}},
			},
		},
	}
	for _, object := range []client.Object{
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: p.Spec.Fleet.Postgres.SecretRef.Name, Namespace: env.Namespace},
			StringData: map[string]string{v1alpha1.DatabaseURLKey: env.DatabaseURL},
		},
		p,
	} {
		if err := env.Client.Create(ctx, object); err != nil {
			return nil, fmt.Errorf("creating %q: %w", object.GetName(), err)
		}
	}
	if err := awaitReady(ctx, env, p); err != nil {
		return nil, err
	}
	return simulator.Start(ctx, simulator.Options{
		BrokerURL: env.MQTTURL, ProductID: databaseProductID, Names: names, Topics: []string{topic}, Shadows: len(names),
	})
}

func importDevices(ctx context.Context, env *localenv.Env, names []string) error {
	store, err := postgres.Open(ctx, postgres.Options{URL: env.DatabaseURL})
	if err != nil {
		return err
	}
	defer store.Close()
	_, err = store.Import(ctx, fleet.Product{Namespace: env.Namespace, ProductID: databaseProductID}, func(yield func(postgres.Device, error) bool) {
		for _, name := range names {
			if !yield(postgres.Device{Name: name}, nil) {
				return
			}
		}
	})
	return err
}

// awaitReady waits until tasks may run on a product.
func awaitReady(ctx context.Context, env *localenv.Env, p *v1alpha1.Product) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		if err := env.Client.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return fmt.Errorf("reading product %q: %w", p.Name, err)
		}
		if product.Ready(p) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("product %q is not Ready: %+v", p.Name, p.Status.Conditions)
		case <-ticker.C:
		}
	}
}

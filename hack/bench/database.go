package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres"
)

// database is the environment's, as the operator opens it, and a connection for the
// limits.
type database struct {
	store *postgres.Store
	conn  *pgx.Conn
}

func openDatabase(ctx context.Context, env *localenv.Env) (*database, error) {
	store, err := postgres.Open(ctx, postgres.Options{URL: env.DatabaseURL})
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	conn, err := pgx.Connect(ctx, env.DatabaseURL)
	if err != nil {
		store.Close()
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	return &database{store: store, conn: conn}, nil
}

func (d *database) close(ctx context.Context) {
	_ = d.conn.Close(ctx)
	d.store.Close()
}

// add imports devices; all must be new.
func (d *database) add(ctx context.Context, p fleet.Product, names []string) error {
	sum, err := d.store.Import(ctx, p, func(yield func(postgres.Device, error) bool) {
		for _, name := range names {
			if !yield(postgres.Device{Name: name}, nil) {
				return
			}
		}
	})
	if err == nil && sum.Added != int64(len(names)) {
		err = fmt.Errorf("%+v", sum)
	}
	if err != nil {
		return fmt.Errorf("import of %d devices: %w", len(names), err)
	}
	return nil
}

// rest leaves the database without rows to clean up and nothing to write, so that what
// is measured next does not pay for what was before it.
func (d *database) rest(ctx context.Context) error {
	for _, statement := range []string{`VACUUM (ANALYZE) batchtask_device`, `CHECKPOINT`} {
		if _, err := d.conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// makeDatabaseProduct makes a product whose devices are in the database, and waits until
// tasks may run.
func makeDatabaseProduct(ctx context.Context, env *localenv.Env) error {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: env.Namespace, Name: "database"},
		StringData: map[string]string{v1alpha1.DatabaseURLKey: env.DatabaseURL},
	}
	product := newProduct(env.Namespace, productID)
	product.Spec.Fleet = v1alpha1.Fleet{
		Type: v1alpha1.FleetTypePostgres, Postgres: &v1alpha1.PostgresFleet{SecretRef: v1alpha1.SecretReference{Name: secret.Name}},
	}
	for _, object := range []client.Object{secret, product} {
		if err := env.Client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %T %s: %w", object, object.GetName(), err)
		}
	}
	return awaitProduct(ctx, env, product)
}

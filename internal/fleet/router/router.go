// Package router leads each product to the store that its devices are kept in.
package router

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/product"
)

// Router is a [fleet.Store] over all products, whatever store each has.
type Router struct {
	// Products are read from here; a cache with the index [product.FieldProductID].
	Products client.Reader
	// Kubernetes is the store of products whose fleet is of the type Kubernetes.
	Kubernetes fleet.Store
	// Databases are the stores of those of the type Postgres.
	Databases *Databases
}

var _ fleet.ResultsKeeper = (*Router)(nil)

// of returns the store of a product. The error is [fleet.ErrNoProduct] where there is
// none: tasks over a database would find no device anywhere else, and be done.
func (r *Router) of(ctx context.Context, p fleet.Product) (fleet.Store, error) {
	return choose(ctx, r.Products, r.Databases, p, r.Kubernetes)
}

// orNone is [Router.of] for who may be told that a product that does not exist has no
// devices: it has the store of Kubernetes.
func (r *Router) orNone(ctx context.Context, p fleet.Product) (fleet.Store, error) {
	return orKube(ctx, r.Products, r.Databases, p, r.Kubernetes)
}

// Shadows are the shadows of all devices, for who reads and writes those of one device
// at a time and needs no [Router].
type Shadows struct {
	// Products are read from here, live or from a cache.
	Products client.Reader
	// Kubernetes are those of products whose fleet is of the type Kubernetes.
	Kubernetes ShadowStore
	// Databases are the stores of those of the type Postgres.
	Databases *Databases
}

// ShadowStore is the part of [fleet.Store] that is about one device.
type ShadowStore interface {
	ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error)
	ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error
}

// ReadShadow is that of [fleet.Store].
func (s *Shadows) ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error) {
	store, err := orKube(ctx, s.Products, s.Databases, p, s.Kubernetes)
	if err != nil {
		return fleet.Shadow{}, err
	}
	return store.ReadShadow(ctx, p, name)
}

// ChangeShadow is that of [fleet.Store].
func (s *Shadows) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	store, err := orKube(ctx, s.Products, s.Databases, p, s.Kubernetes)
	if err != nil {
		return err
	}
	return store.ChangeShadow(ctx, p, name, change)
}

// choose returns what a product's devices are kept in: its database, or kube.
func choose[T any](ctx context.Context, products client.Reader, databases *Databases, p fleet.Product, kube T) (store T, err error) {
	found, err := product.Finder{Reader: products}.Lookup(ctx, p.Namespace, p.ProductID)
	switch {
	case err != nil:
		return store, err
	case found == nil:
		return store, fmt.Errorf("product ID %s in namespace %s: %w", p.ProductID, p.Namespace, fleet.ErrNoProduct)
	case found.Spec.Fleet.Type != v1alpha1.FleetTypePostgres:
		return kube, nil
	case found.Spec.Fleet.Postgres == nil: // the schema does not let it be
		return store, fmt.Errorf("product %s/%s: spec.fleet.postgres is missing", found.Namespace, found.Name)
	}
	database, err := databases.Store(ctx, client.ObjectKey{Namespace: found.Namespace, Name: found.Spec.Fleet.Postgres.SecretRef.Name})
	if err != nil {
		return store, err
	}
	return any(database).(T), nil //nolint:forcetypeassert // T is a part of fleet.Store
}

// orKube is choose, where a product that does not exist has kube.
func orKube[T any](ctx context.Context, products client.Reader, databases *Databases, p fleet.Product, kube T) (T, error) {
	store, err := choose(ctx, products, databases, p, kube)
	if errors.Is(err, fleet.ErrNoProduct) {
		return kube, nil
	}
	return store, err
}

// Sync implements [fleet.Store]. Databases are always up to date.
func (r *Router) Sync(ctx context.Context, namespace string) error {
	return r.Kubernetes.Sync(ctx, namespace)
}

// Count implements [fleet.Store].
func (r *Router) Count(ctx context.Context, q fleet.Query) (int64, error) {
	s, err := r.of(ctx, q.Product)
	if err != nil {
		return 0, err
	}
	return s.Count(ctx, q)
}

// Total implements [fleet.Store].
func (r *Router) Total(ctx context.Context, p fleet.Product) (int64, error) {
	s, err := r.orNone(ctx, p)
	if err != nil {
		return 0, err
	}
	return s.Total(ctx, p)
}

// Scan implements [fleet.Store].
func (r *Router) Scan(ctx context.Context, q fleet.Query, limit int) (names []string, more bool, err error) {
	s, err := r.of(ctx, q.Product)
	if err != nil {
		return nil, false, err
	}
	return s.Scan(ctx, q, limit)
}

// ApplyDesired implements [fleet.Store].
func (r *Router) ApplyDesired(ctx context.Context, p fleet.Product, u fleet.DesiredUpdate, names []string) []fleet.DesiredResult {
	s, err := r.of(ctx, p)
	if err != nil {
		return slices.Repeat([]fleet.DesiredResult{{Err: err}}, len(names))
	}
	return s.ApplyDesired(ctx, p, u, names)
}

// ReadShadow implements [fleet.Store].
func (r *Router) ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error) {
	s, err := r.orNone(ctx, p)
	if err != nil {
		return fleet.Shadow{}, err
	}
	return s.ReadShadow(ctx, p, name)
}

// ChangeShadow implements [fleet.Store].
func (r *Router) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	s, err := r.orNone(ctx, p)
	if err != nil {
		return err
	}
	return s.ChangeShadow(ctx, p, name, change)
}

// Acknowledged implements [fleet.Store].
func (r *Router) Acknowledged(ctx context.Context, p fleet.Product, taskUIDs []string) (map[string]fleet.Acknowledged, error) {
	s, err := r.orNone(ctx, p)
	if err != nil {
		return nil, err
	}
	return s.Acknowledged(ctx, p, taskUIDs)
}

// Package product holds which Product a product ID belongs to.
//
// A product ID is the first level of its devices' topics, and all namespaces
// share the broker: two namespaces with one ID would reach each other's devices.
// So an ID belongs to one namespace, by a ProductIDClaim, and there to one Product.
package product

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
)

// FieldProductID is the selectable field, and the cache index, of the product ID
// of Products, Devices and BatchTasks.
const FieldProductID = "spec.productID"

// Owner returns the product that the ID of all these products belongs to: the
// oldest that is not being deleted, of several of one second the one with the
// smallest UID. It returns nil if there is none.
func Owner(products []v1alpha1.Product) *v1alpha1.Product {
	var owner *v1alpha1.Product
	for i := range products {
		p := &products[i]
		if p.DeletionTimestamp.IsZero() && (owner == nil || older(p, owner)) {
			owner = p
		}
	}
	return owner
}

// Ready reports whether tasks may run on the product.
func Ready(p *v1alpha1.Product) bool {
	return meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady)
}

// Index makes a cache find Products by [FieldProductID].
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	byID := func(o client.Object) []string { return []string{o.(*v1alpha1.Product).Spec.ProductID} } //nolint:forcetypeassert // indexed as such
	if err := indexer.IndexField(ctx, &v1alpha1.Product{}, FieldProductID, byID); err != nil {
		return fmt.Errorf("index products by %s: %w", FieldProductID, err)
	}
	return nil
}

// Finder finds products by their ID.
type Finder struct {
	Reader client.Reader
	// Cache, if it is set, says which product [Finder.Lookup] tries first. It must have
	// the index of [Index]. While it cannot tell, as before it has started, it does not
	// count.
	Cache client.Reader
}

// Lookup returns the namespace's product with this ID: one that is Ready before
// one that is not, then the oldest. It returns nil if there is none.
//
// What is returned has come from Reader. One object is read where Cache shows a product
// that is Ready, and still is: for a list an API server waits, for 100 ms where it is asked
// often, until its own cache is sure to have everything that was written before.
func (f Finder) Lookup(ctx context.Context, namespace, productID string) (*v1alpha1.Product, error) {
	if f.Cache != nil {
		shown, err := Finder{Reader: f.Cache}.Lookup(ctx, namespace, productID)
		if err == nil && shown != nil && Ready(shown) {
			is := &v1alpha1.Product{}
			err := f.Reader.Get(ctx, client.ObjectKeyFromObject(shown), is)
			if client.IgnoreNotFound(err) != nil {
				return nil, fmt.Errorf("read product %q in namespace %q: %w", shown.Name, namespace, err)
			}
			if err == nil && is.Spec.ProductID == productID && Ready(is) {
				return is, nil
			}
		}
	}
	var list v1alpha1.ProductList
	if err := f.Reader.List(ctx, &list, client.InNamespace(namespace), client.MatchingFields{FieldProductID: productID}); err != nil {
		return nil, fmt.Errorf("list products with ID %q in namespace %q: %w", productID, namespace, err)
	}
	if ready := slices.IndexFunc(list.Items, func(p v1alpha1.Product) bool { return Ready(&p) }); ready >= 0 {
		return &list.Items[ready], nil
	}
	return Owner(list.Items), nil
}

// Namespace returns the namespace that a product ID belongs to, if that has a Product
// with it: "" if there is none. A claim decides; where an ID has none yet, as right after
// an upgrade from a version without claims, only a Product that is Ready counts.
func (f Finder) Namespace(ctx context.Context, productID string) (string, error) {
	claim := &v1alpha1.ProductIDClaim{}
	claimed := true
	if err := f.Reader.Get(ctx, client.ObjectKey{Name: ClaimName(productID)}, claim); apierrors.IsNotFound(err) {
		claimed = false
	} else if err != nil {
		return "", fmt.Errorf("read the claim of product ID %q: %w", productID, err)
	}
	var list v1alpha1.ProductList
	if err := f.Reader.List(ctx, &list, client.InNamespace(claim.Spec.Namespace), client.MatchingFields{FieldProductID: productID}); err != nil {
		return "", fmt.Errorf("list products with ID %q: %w", productID, err)
	}
	if claimed && claim.Spec.ProductID != productID {
		return "", nil
	}
	for i := range list.Items {
		if p := &list.Items[i]; p.DeletionTimestamp.IsZero() && (claimed || Ready(p)) {
			return p.Namespace, nil
		}
	}
	return "", nil
}

func older(a, b *v1alpha1.Product) bool {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID)) < 0
}

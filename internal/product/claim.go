package product

import (
	"context"
	"fmt"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
)

// FieldClaimNamespace is the selectable field, and the cache index, of the namespace
// of ProductIDClaims.
const FieldClaimNamespace = "spec.namespace"

// claimPrefix begins the names of claims: the name of an object may not begin with a
// hyphen, and an ID may begin with a capital.
const claimPrefix = "p"

// ClaimName returns the name of the ProductIDClaim of a product ID. Names of objects have
// no capitals, and 'AB' is not 'ab': each capital becomes a hyphen and its small letter.
// Of 1 to 32 letters and digits comes a name of at most 65 characters that a DNS-1123
// subdomain may have. A claim whose name is not that of its spec.productID gives nobody the ID.
func ClaimName(productID string) string {
	var name strings.Builder
	name.WriteString(claimPrefix)
	for _, c := range productID {
		if 'A' <= c && c <= 'Z' {
			name.WriteByte('-')
			c += 'a' - 'A'
		}
		name.WriteRune(c)
	}
	return name.String()
}

// ClaimedID returns the product ID that a claim of this name is of; ok is false for a
// name that no ID has.
func ClaimedID(name string) (productID string, ok bool) {
	rest, ok := strings.CutPrefix(name, claimPrefix)
	if !ok {
		return "", false
	}
	var id strings.Builder
	capital := false
	for _, c := range rest {
		switch {
		case c == '-' && !capital:
			capital = true
			continue
		case 'a' <= c && c <= 'z' && capital:
			c -= 'a' - 'A'
		case capital || (c < 'a' || 'z' < c) && (c < '0' || '9' < c):
			return "", false
		}
		capital = false
		id.WriteRune(c)
	}
	return id.String(), !capital && id.Len() > 0
}

// IndexClaims makes a cache find ProductIDClaims by [FieldClaimNamespace].
func IndexClaims(ctx context.Context, indexer client.FieldIndexer) error {
	byNamespace := func(o client.Object) []string { return []string{o.(*v1alpha1.ProductIDClaim).Spec.Namespace} } //nolint:forcetypeassert // indexed as such
	if err := indexer.IndexField(ctx, &v1alpha1.ProductIDClaim{}, FieldClaimNamespace, byNamespace); err != nil {
		return fmt.Errorf("index claims by %s: %w", FieldClaimNamespace, err)
	}
	return nil
}

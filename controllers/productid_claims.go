package controllers

import (
	"context"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/product"
)

// +kubebuilder:rbac:groups=iot.batchtask.dev,resources=productidclaims,verbs=get;list;watch;create;delete
// +kubebuilder:rbac:groups=iot.batchtask.dev,resources=productidclaims/status,verbs=patch

// claims decides whether a product has its ID. It calls nothing but the API server, and
// that only for a product that is not Ready yet.
//
// Never are two products of one ID Ready, at no revision, for:
//
//   - A product is made Ready only if, after it was read, its namespace was seen live to
//     have the claim, and the claim not to be marked as unused. There is one claim of an
//     ID, for its name is made of it, and its namespace never changes.
//   - The operator deletes a claim only when it has been marked, the namespace has been
//     seen live without a product of the ID after that, and the mark still stands (the
//     deletion names the version). A product that is to be Ready takes the mark away
//     first. So of the two, one fails.
//   - A write that an old leader makes late names the version of the product it was
//     decided on, and so does every write of a claim.
//   - Within a namespace the oldest has the ID, and is not Ready before every other has
//     ceased to be. One ID is decided on by one goroutine at a time.
//
// A claim that an administrator deletes while a product is Ready comes back for that
// product: Ready ones come first. That is also how claims come about at an upgrade from
// a version that had none.
type claims struct {
	client     client.Client
	live       client.Reader // reads past every cache
	clock      clock.PassiveClock
	quarantine time.Duration

	mu      sync.Mutex
	pending map[string]map[string]time.Time // by namespace, then claim: made by this process, and not seen in the cache yet
}

// pendingTime is how long a claim counts that was made and never came into the cache:
// somebody has deleted it at once.
const pendingTime = 10 * time.Second

// judge returns what the Ready condition says of the product's ID.
func (c *claims) judge(ctx context.Context, p *v1alpha1.Product) (metav1.Condition, error) {
	var all v1alpha1.ProductList
	if err := c.client.List(ctx, &all, client.MatchingFields{product.FieldProductID: p.Spec.ProductID}); err != nil {
		return metav1.Condition{}, fmt.Errorf("list products with ID %q: %w", p.Spec.ProductID, err)
	}
	here, elsewhere := split(all.Items, p.Namespace)
	shown := &v1alpha1.ProductIDClaim{}
	err := c.client.Get(ctx, client.ObjectKey{Name: product.ClaimName(p.Spec.ProductID)}, shown)
	if client.IgnoreNotFound(err) != nil {
		return metav1.Condition{}, fmt.Errorf("read the claim of product ID %q: %w", p.Spec.ProductID, err)
	}
	if err == nil && holds(shown, p) && product.Ready(p) {
		return inNamespace(p, here), nil
	}
	if rival := readyOne(elsewhere); rival != nil && !product.Ready(p) {
		// That it is to be Ready no more is written there first.
		return c.rivalled(ctx, p)
	}
	claim, made, verdict, err := c.obtain(ctx, p, err == nil, elsewhere)
	if verdict != nil || err != nil {
		return ptr.Deref(verdict, metav1.Condition{}), err
	}
	if claim.Spec.ProductID != p.Spec.ProductID || claim.Spec.Namespace != p.Namespace || !claim.DeletionTimestamp.IsZero() {
		return c.taken(claim, p), nil
	}
	if claim.Status.UnusedSince != nil {
		if err := markUsed(ctx, c.client, claim); err != nil {
			return metav1.Condition{}, err
		}
	}
	if !made { // else nobody here has been Ready with this ID, ever since nobody had the claim
		var list v1alpha1.ProductList
		if err := c.live.List(ctx, &list, client.InNamespace(p.Namespace), client.MatchingFields{product.FieldProductID: p.Spec.ProductID}); err != nil {
			return metav1.Condition{}, fmt.Errorf("list products with ID %q in namespace %q: %w", p.Spec.ProductID, p.Namespace, err)
		}
		here = list.Items
	}
	return inNamespace(p, here), nil
}

// obtain returns the claim of the product's ID as it is live, and makes it if there is
// none and the product is the one to have it. It returns a verdict instead where the
// product is not, or may not.
func (c *claims) obtain(ctx context.Context, p *v1alpha1.Product, shown bool, elsewhere []v1alpha1.Product) (claim *v1alpha1.ProductIDClaim, made bool, verdict *metav1.Condition, err error) {
	name := product.ClaimName(p.Spec.ProductID)
	claim = &v1alpha1.ProductIDClaim{}
	if shown {
		err := c.live.Get(ctx, client.ObjectKey{Name: name}, claim)
		if err == nil || !apierrors.IsNotFound(err) {
			return claim, false, nil, err
		}
	}
	if older := first(elsewhere); older != nil && !product.Ready(p) && olderProduct(older, p) {
		return nil, false, conflict(p, "is being claimed by an older Product of another namespace"), nil
	}
	if refused, err := c.reserve(ctx, p, name); refused != nil || err != nil {
		return nil, false, refused, err
	}
	claim = &v1alpha1.ProductIDClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.ProductIDClaimSpec{ProductID: p.Spec.ProductID, Namespace: p.Namespace},
	}
	switch err := c.client.Create(ctx, claim); {
	case apierrors.IsAlreadyExists(err):
		c.unreserve(p.Namespace, name)
		return claim, false, nil, c.live.Get(ctx, client.ObjectKey{Name: name}, claim)
	case err != nil:
		c.unreserve(p.Namespace, name)
		return nil, false, nil, fmt.Errorf("claim product ID %q: %w", p.Spec.ProductID, err)
	}
	return claim, true, nil, nil
}

// rivalled is the verdict while the cache shows another namespace's product as Ready.
func (c *claims) rivalled(ctx context.Context, p *v1alpha1.Product) (metav1.Condition, error) {
	claim := &v1alpha1.ProductIDClaim{}
	err := c.live.Get(ctx, client.ObjectKey{Name: product.ClaimName(p.Spec.ProductID)}, claim)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return metav1.Condition{}, fmt.Errorf("read the claim of product ID %q: %w", p.Spec.ProductID, err)
	case err == nil && claim.Spec.Namespace == p.Namespace:
		return *conflict(p, "is being handed over from another namespace"), nil
	case err == nil:
		return c.taken(claim, p), nil
	default:
		return *conflict(p, "belongs to another namespace, whose Product is Ready"), nil
	}
}

// reserve counts a claim that is about to be made against the limit of the namespace. It
// returns a verdict where that is reached. A product that is Ready has its ID already.
func (c *claims) reserve(ctx context.Context, p *v1alpha1.Product, name string) (*metav1.Condition, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !product.Ready(p) {
		limit, held, kept, err := c.count(ctx, p.Namespace)
		if err != nil {
			return nil, err
		}
		if held >= limit {
			return &metav1.Condition{
				Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonProductIDLimit,
				Message: fmt.Sprintf("spec.productID: the namespace may claim %d product IDs (TaskQuota %q, spec.maxProductIDs) and has claimed %d, of which %d are kept for %s after their Product was deleted. "+
					"An administrator can raise the limit or release an ID that is kept: kubectl delete productidclaim NAME", limit, v1alpha1.TaskQuotaName, held, kept, c.quarantine),
			}, nil
		}
	}
	if c.pending == nil {
		c.pending = map[string]map[string]time.Time{}
	}
	if c.pending[p.Namespace] == nil {
		c.pending[p.Namespace] = map[string]time.Time{}
	}
	c.pending[p.Namespace][name] = c.clock.Now()
	return nil, nil
}

// count returns the limit of a namespace, how many claims it has, and how many of these
// are of products that are gone.
func (c *claims) count(ctx context.Context, namespace string) (limit, held, kept int, err error) {
	limit = int(v1alpha1.DefaultMaxProductIDs)
	var quota v1alpha1.TaskQuota
	err = c.client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: v1alpha1.TaskQuotaName}, &quota)
	if client.IgnoreNotFound(err) != nil {
		return 0, 0, 0, fmt.Errorf("read the TaskQuota: %w", err)
	}
	if err == nil {
		limit = int(ptr.Deref(quota.Spec.MaxProductIDs, v1alpha1.DefaultMaxProductIDs))
	}
	var list v1alpha1.ProductIDClaimList
	if err := c.client.List(ctx, &list, client.MatchingFields{product.FieldClaimNamespace: namespace}, client.UnsafeDisableDeepCopy); err != nil {
		return 0, 0, 0, fmt.Errorf("list the claims: %w", err)
	}
	pending := c.pending[namespace]
	for i := range list.Items {
		delete(pending, list.Items[i].Name)
		if list.Items[i].Status.UnusedSince != nil {
			kept++
		}
	}
	for name, since := range pending {
		if c.clock.Since(since) > pendingTime {
			delete(pending, name)
		}
	}
	held = len(list.Items) + len(pending)
	if len(pending) == 0 {
		delete(c.pending, namespace)
	}
	return limit, held, kept, nil
}

func (c *claims) unreserve(namespace, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending[namespace], name)
}

// taken is the verdict where a claim says that the ID is not the product's. It does not
// name the other namespace: who may see that, can look at the claim.
func (c *claims) taken(claim *v1alpha1.ProductIDClaim, p *v1alpha1.Product) metav1.Condition {
	if claim.Spec.ProductID != p.Spec.ProductID {
		return *conflict(p, fmt.Sprintf("is claimed by nobody, since the spec.productID of productidclaim %s is another; an administrator can delete that", claim.Name))
	}
	if claim.Status.UnusedSince == nil || claim.Spec.Namespace == p.Namespace {
		return *conflict(p, "belongs to another namespace")
	}
	return *conflict(p, fmt.Sprintf("is kept until %s for another namespace, whose Product is gone; an administrator can release it before: kubectl delete productidclaim %s",
		claim.Status.UnusedSince.Add(c.quarantine).UTC().Format(time.RFC3339), claim.Name))
}

func conflict(p *v1alpha1.Product, what string) *metav1.Condition {
	return &metav1.Condition{
		Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonProductIDConflict,
		Message: fmt.Sprintf("spec.productID: %q %s. Choose another ID; this product takes over when that one is free.", p.Spec.ProductID, what),
	}
}

// inNamespace says which of the products of a namespace has the ID that is the
// namespace's: the oldest, when no other is Ready any more.
func inNamespace(p *v1alpha1.Product, here []v1alpha1.Product) metav1.Condition {
	if owner := product.Owner(here); owner != nil && owner.UID != p.UID {
		return *conflict(p, fmt.Sprintf("belongs to Product %q, which is older", owner.Name))
	}
	for i := range here {
		if here[i].UID != p.UID && product.Ready(&here[i]) {
			return *conflict(p, fmt.Sprintf("is being handed over from the younger Product %q", here[i].Name))
		}
	}
	return metav1.Condition{Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonProductReady, Message: "Tasks may run on this product"}
}

// holds reports whether the product's namespace has its ID, for now and for good.
func holds(claim *v1alpha1.ProductIDClaim, p *v1alpha1.Product) bool {
	return claim.Spec.ProductID == p.Spec.ProductID && claim.Spec.Namespace == p.Namespace && claim.Status.UnusedSince == nil && claim.DeletionTimestamp.IsZero()
}

func split(all []v1alpha1.Product, namespace string) (here, elsewhere []v1alpha1.Product) {
	for i := range all {
		if all[i].Namespace == namespace {
			here = append(here, all[i])
		} else {
			elsewhere = append(elsewhere, all[i])
		}
	}
	return here, elsewhere
}

// readyOne returns a product that is Ready, or nil. One whose deletion somebody's finalizer
// holds up counts: tasks run on it until it is gone.
func readyOne(products []v1alpha1.Product) *v1alpha1.Product {
	for i := range products {
		if product.Ready(&products[i]) {
			return &products[i]
		}
	}
	return nil
}

// first returns the product that is to claim a free ID: the oldest, but for those whose
// namespace may claim no more. Else a namespace could keep IDs from others by products
// that wait.
func first(products []v1alpha1.Product) *v1alpha1.Product {
	var able []v1alpha1.Product
	for i := range products {
		if ready := meta.FindStatusCondition(products[i].Status.Conditions, v1alpha1.ConditionReady); ready == nil || ready.Reason != v1alpha1.ReasonProductIDLimit {
			able = append(able, products[i])
		}
	}
	return product.Owner(able)
}

func olderProduct(a, b *v1alpha1.Product) bool {
	return product.Owner([]v1alpha1.Product{*a, *b}).UID == a.UID
}

package product_test

import (
	"context"
	"errors"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// What a cache shows is where to look, and nothing more: the answer is what is there.
func TestLookupWithCache(t *testing.T) {
	const ready, not, gone = "Ready", "not Ready", "gone"
	tests := map[string]struct {
		cached, live string // of the product a; b is Ready if a is not
		wantName     string
		wantLists    int
	}{
		"as the cache has it":          {cached: ready, live: ready, wantName: "a"},
		"it has just become Ready":     {cached: not, live: ready, wantName: "a", wantLists: 1},
		"it is new":                    {cached: gone, live: ready, wantName: "a", wantLists: 1},
		"the cache has not started":    {cached: "not started", live: ready, wantName: "a", wantLists: 1},
		"another one has become Ready": {cached: ready, live: not, wantName: "b", wantLists: 1},
		"it has been deleted":          {cached: ready, live: gone, wantName: "b", wantLists: 1},
		"made anew with another ID":    {cached: ready, live: "another ID", wantName: "b", wantLists: 1},
		"it is not, and was not":       {cached: not, live: not, wantName: "b", wantLists: 1},
	}
	env := testenv.Start(t)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			namespace := env.Namespace(t)
			create := func(name, id, state string) {
				t.Helper()
				if state == gone {
					return
				}
				p := testobj.Product(name).In(namespace).ID(id).Obj()
				if err := env.Client.Create(t.Context(), p); err != nil {
					t.Fatal(err)
				}
				is := metav1.ConditionFalse
				if state == ready {
					is = metav1.ConditionTrue
				}
				p.Status.Conditions = testobj.Product("").Ready(is, "Test").Obj().Status.Conditions
				if err := env.Client.Status().Update(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			switch tt.live {
			case "another ID":
				create("a", "OTHER", ready)
			default:
				create("a", "CACHED", tt.live)
			}
			if tt.live != ready {
				create("b", "CACHED", ready)
			}

			lists := 0
			live := interceptor.NewClient(env.Client, interceptor.Funcs{
				List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
					lists++
					return c.List(ctx, list, options...)
				},
			})
			cache := interceptor.NewClient(env.Client, interceptor.Funcs{
				List: func(_ context.Context, _ client.WithWatch, list client.ObjectList, _ ...client.ListOption) error {
					is := metav1.ConditionFalse
					if tt.cached == ready {
						is = metav1.ConditionTrue
					}
					if tt.cached == "not started" {
						return errors.New(tt.cached)
					}
					if tt.cached != gone {
						list.(*v1alpha1.ProductList).Items = []v1alpha1.Product{*testobj.Product("a").In(namespace).ID("CACHED").Ready(is, "Test").Obj()}
					}
					return nil
				},
			})
			found, err := product.Finder{Reader: live, Cache: cache}.Lookup(t.Context(), namespace, "CACHED")
			if err != nil || found == nil {
				t.Fatalf("found %v, error %v", found, err)
			}
			if found.Name != tt.wantName || found.UID == "" {
				t.Errorf("found %q with UID %q, want %q as it is live", found.Name, found.UID, tt.wantName)
			}
			if lists != tt.wantLists {
				t.Errorf("%d lists, want %d", lists, tt.wantLists)
			}
		})
	}
}

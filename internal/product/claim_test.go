package product_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/testenv"
)

func TestClaimName(t *testing.T) {
	for id, want := range map[string]string{
		"ab": "pab", "AB": "p-a-b", "aB": "pa-b", "Ab": "p-ab", "ABCDE12345": "p-a-b-c-d-e12345", "1": "p1",
		strings.Repeat("Z", 32): "p" + strings.Repeat("-z", 32),
	} {
		got := product.ClaimName(id)
		if got != want || len(validation.IsDNS1123Subdomain(got)) > 0 {
			t.Errorf("the claim of %q is named %q, want %q", id, got, want)
		}
		if back, ok := product.ClaimedID(got); !ok || back != id {
			t.Errorf("%q is the claim of %q (%t), want %q", got, back, ok, id)
		}
	}
	for _, name := range []string{"", "p", "x1", "p-", "p-1", "p--a", "pA", "pa.b"} {
		if id, ok := product.ClaimedID(name); ok {
			t.Errorf("%q is taken for the claim of %q", name, id)
		}
	}
}

func FuzzClaimedID(f *testing.F) {
	f.Add("p-ab-c1")
	f.Fuzz(func(t *testing.T, name string) {
		if id, ok := product.ClaimedID(name); ok && product.ClaimName(id) != name {
			t.Errorf("%q is the claim of %q, whose claim is %q", name, id, product.ClaimName(id))
		}
	})
}

// The longest names are names, and nothing of a claim's spec changes.
func TestClaimSchema(t *testing.T) {
	env := testenv.Start(t)
	claim := func(name, id string) *v1alpha1.ProductIDClaim {
		return &v1alpha1.ProductIDClaim{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ProductIDClaimSpec{ProductID: id, Namespace: "somebody"},
		}
	}
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for _, id := range []string{letters, strings.Repeat("Z", 32), "SchemaTest"} {
		if err := env.Client.Create(t.Context(), claim(product.ClaimName(id), id)); err != nil {
			t.Errorf("the claim of %s is refused: %v", id, err)
		}
	}
	c := claim(product.ClaimName(letters), letters)
	if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(c), c); err != nil {
		t.Fatal(err)
	}
	c.Spec.Namespace = "another"
	if err := env.Client.Update(t.Context(), c); err == nil || !strings.Contains(err.Error(), "immutable") {
		t.Errorf("the namespace of a claim was changed: %v", err)
	}
}

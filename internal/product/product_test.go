package product_test

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestOwner(t *testing.T) {
	first := metav1.NewTime(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	second := metav1.NewTime(first.Add(time.Second))
	old := testobj.Product("old").Created("z", first)
	young := testobj.Product("young").Created("a", second)
	for _, tc := range []struct {
		name string
		of   []*v1alpha1.Product
		want string // "" for nil
	}{
		{"none", nil, ""},
		{"one", []*v1alpha1.Product{young.Obj()}, "young"},
		{"the oldest", []*v1alpha1.Product{young.Obj(), old.Obj()}, "old"},
		{"in any order", []*v1alpha1.Product{old.Obj(), young.Obj()}, "old"},
		{"of one second the smaller UID", []*v1alpha1.Product{testobj.Product("b").Created("b", first).Obj(), testobj.Product("a").Created("a", first).Obj()}, "a"},
		{"one that is being deleted owns nothing", []*v1alpha1.Product{testobj.Product("old").Created("z", first).Deleting(second).Obj(), young.Obj()}, "young"},
		{"nor when it is alone", []*v1alpha1.Product{testobj.Product("old").Created("z", first).Deleting(second).Obj()}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var list []v1alpha1.Product
			for _, p := range tc.of {
				list = append(list, *p)
			}
			got := ""
			if owner := product.Owner(list); owner != nil {
				got = owner.Name
			}
			if got != tc.want {
				t.Errorf("the owner is %q, want %q", got, tc.want)
			}
		})
	}
}

func TestLookup(t *testing.T) {
	env := testenv.Start(t)
	namespace, elsewhere := env.Namespace(t), env.Namespace(t)
	finder := product.Finder{Reader: env.Client}
	lookup := func(id string) string {
		t.Helper()
		found, err := finder.Lookup(t.Context(), namespace, id)
		if err != nil {
			t.Fatal(err)
		}
		if found == nil {
			return ""
		}
		return found.Name
	}
	b := testobj.Product("b").In(namespace).ID("LOOKUP").Obj()
	for _, p := range []*v1alpha1.Product{
		b, testobj.Product("other").In(namespace).ID("OTHER").Obj(), testobj.Product("a").In(elsewhere).ID("LOOKUP").Obj(),
	} {
		if err := env.Client.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if got := lookup("NONE"); got != "" {
		t.Errorf("of an ID that is nobody's, found %q", got)
	}
	if got := lookup("LOOKUP"); got != "b" {
		t.Errorf("found %q, want b, which is in the namespace", got)
	}
	// One that is Ready comes before an older one that is not.
	c := testobj.Product("c").In(namespace).ID("LOOKUP").Obj()
	if err := env.Client.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*v1alpha1.Product{c, b} {
		list := []*v1alpha1.Product{c, b}
		for _, q := range list {
			is := metav1.ConditionFalse
			if q == p {
				is = metav1.ConditionTrue
			}
			q.Status.Conditions = testobj.Product("").Ready(is, "Test").Obj().Status.Conditions
			if err := env.Client.Status().Update(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		if got := lookup("LOOKUP"); got != p.Name {
			t.Errorf("found %q, want the one that is Ready, %q", got, p.Name)
		}
	}
}

func TestNamespace(t *testing.T) {
	env := testenv.Start(t)
	owner, other := env.Namespace(t), env.Namespace(t)
	id := "N" + strings.ReplaceAll(owner, "-", "") // nobody else's, not even with -count
	finder := product.Finder{Reader: env.Client}
	create := func(namespace string) *v1alpha1.Product {
		t.Helper()
		p := testobj.Product("p").In(namespace).ID(id).Obj()
		if err := env.Client.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	want := func(namespace string) {
		t.Helper()
		if got, err := finder.Namespace(t.Context(), id); err != nil || got != namespace {
			t.Errorf("namespace %q (error %v), want %q", got, err, namespace)
		}
	}
	want("")
	create(other)
	want("") // nobody has said that it is its ID
	p := create(owner)
	p.Status.Conditions = testobj.Product("").Ready(metav1.ConditionTrue, "Test").Obj().Status.Conditions
	if err := env.Client.Status().Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	want(owner) // as before there were claims
	claim := &v1alpha1.ProductIDClaim{
		ObjectMeta: metav1.ObjectMeta{Name: product.ClaimName(id)},
		Spec:       v1alpha1.ProductIDClaimSpec{ProductID: id, Namespace: owner},
	}
	if err := env.Client.Create(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	want(owner)
	if err := env.Client.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	want("") // kept for the owner, who has no product, and not the other's
}

package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/testobj"
)

// databases is a store in which products of some namespaces have a database that is silent.
type databases struct {
	fleet.Store

	mu     sync.Mutex
	silent map[string]chan struct{} // by namespace; closed when it answers
	away   map[string]bool
	asked  map[string]int
}

func (d *databases) wait(ctx context.Context, namespace string) error {
	d.mu.Lock()
	silent, away := d.silent[namespace], d.away[namespace]
	d.asked[namespace]++
	d.mu.Unlock()
	if silent != nil {
		select {
		case <-silent:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if away {
		return errors.New("the database cannot be reached")
	}
	return nil
}

func (d *databases) set(namespace string, away bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.away[namespace] = away
}

func (d *databases) Total(ctx context.Context, p fleet.Product) (int64, error) {
	if err := d.wait(ctx, p.Namespace); err != nil {
		return 0, err
	}
	return 7, nil
}

// inDatabase makes a product whose devices are in a database.
func inDatabase(namespace, name, id string) *v1alpha1.Product {
	p := testobj.Product(name).In(namespace).ID(id).Obj()
	p.Spec.Fleet = v1alpha1.Fleet{Type: v1alpha1.FleetTypePostgres, Postgres: &v1alpha1.PostgresFleet{SecretRef: v1alpha1.SecretReference{Name: "db"}}}
	return p
}

// Databases that say nothing hold up no Product but their own, whose ID is claimed all the same.
func TestSilentDatabasesHoldUpNoProduct(t *testing.T) {
	d := &databases{silent: map[string]chan struct{}{}, away: map[string]bool{}, asked: map[string]int{}}
	op := run(t, settings{store: func(store fleet.Store) fleet.Store { d.Store = store; return d }})
	hostile := op.env.Namespace(t)
	answers := make(chan struct{})
	d.mu.Lock()
	d.silent[hostile] = answers
	d.mu.Unlock()
	const products = 20
	for i := range products {
		op.create(t, inDatabase(hostile, fmt.Sprint("product-", i), fmt.Sprintf("%s%02d", uniqueID(hostile), i)))
	}
	waitFor(t, "all silent databases to be asked at once", func() (bool, any) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.asked[hostile] == products, d.asked[hostile]
	})
	victim := op.env.Namespace(t)
	op.create(t, inDatabase(victim, "product", uniqueID(victim)))
	p := op.waitProduct(t, victim, metav1.ConditionTrue, v1alpha1.ReasonProductReady)
	if p.Status.DeviceCount == nil || *p.Status.DeviceCount != 7 {
		t.Errorf("the product has %v devices, want 7", p.Status.DeviceCount)
	}
	ready := func(name string) string {
		t.Helper()
		p := &v1alpha1.Product{}
		if err := op.env.Client.Get(t.Context(), types.NamespacedName{Namespace: hostile, Name: name}, p); err != nil {
			t.Fatal(err)
		}
		for _, c := range p.Status.Conditions {
			if c.Type == v1alpha1.ConditionReady {
				return c.Reason + ": " + c.Message
			}
		}
		return ""
	}
	waitFor(t, "it to be told that a database says nothing", func() (bool, any) {
		text := ready("product-0")
		return text == v1alpha1.ReasonFleetUnavailable+": The devices cannot be read: the database has not answered yet", text
	})
	close(answers)
	waitFor(t, "the product to be Ready when it answers", func() (bool, any) {
		text := ready("product-0")
		return text == v1alpha1.ReasonProductReady+": Tasks may run on this product", text
	})
}

// A database that cannot be read is told at its own Product, and when it is back too.
func TestProductFollowsItsDatabase(t *testing.T) {
	d := &databases{silent: map[string]chan struct{}{}, away: map[string]bool{}, asked: map[string]int{}}
	op := run(t, settings{store: func(store fleet.Store) fleet.Store { d.Store = store; return d }})
	namespace := op.env.Namespace(t)
	d.set(namespace, true)
	op.create(t, inDatabase(namespace, "product", uniqueID(namespace)))
	p := op.waitProduct(t, namespace, metav1.ConditionFalse, v1alpha1.ReasonFleetUnavailable)
	if p.Status.DeviceCount != nil {
		t.Errorf("%d devices were counted in a database that is away", *p.Status.DeviceCount)
	}
	d.set(namespace, false)
	op.waitProduct(t, namespace, metav1.ConditionTrue, v1alpha1.ReasonProductReady)
	// Another product of that name is another one.
	if err := op.env.Client.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the product to be gone", func() (bool, any) {
		err := op.env.Client.Get(t.Context(), client.ObjectKeyFromObject(p), &v1alpha1.Product{})
		return client.IgnoreNotFound(err) == nil && err != nil, err
	})
	d.set(namespace, true)
	op.create(t, inDatabase(namespace, "product", uniqueID(namespace)))
	op.waitProduct(t, namespace, metav1.ConditionFalse, v1alpha1.ReasonFleetUnavailable)
}

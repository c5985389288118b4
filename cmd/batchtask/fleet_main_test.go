package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// person calls the program in a namespace.
type person struct {
	t         *testing.T
	env       *testenv.Env
	namespace string
}

// newPerson sets KUBECONFIG, whose context has a namespace.
func newPerson(t *testing.T) *person {
	t.Helper()
	p := &person{t: t, env: testenv.Start(t)}
	p.namespace = p.env.Namespace(t)
	config, err := clientcmd.Load(p.env.KubeConfig)
	if err != nil {
		t.Fatal(err)
	}
	config.Contexts[config.CurrentContext].Namespace = p.namespace
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	t.Setenv(clientcmd.RecommendedConfigPathEnvVar, file)
	return p
}

// product makes a Product, whose devices are in the database or, without one, objects.
func (p *person) product(name, id, databaseURL string) {
	p.t.Helper()
	product := testobj.Product(name).In(p.namespace).ID(id).Obj()
	if databaseURL != "" {
		product.Spec.Fleet = v1alpha1.Fleet{
			Type:     v1alpha1.FleetTypePostgres,
			Postgres: &v1alpha1.PostgresFleet{SecretRef: v1alpha1.SecretReference{Name: name + "-database"}},
		}
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: name + "-database"},
			StringData: map[string]string{v1alpha1.DatabaseURLKey: databaseURL},
		}
		if err := p.env.Client.Create(p.t.Context(), secret); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := p.env.Client.Create(p.t.Context(), product); err != nil {
		p.t.Fatal(err)
	}
}

// call runs the program, and returns what it wrote and its last word.
func (p *person) call(ctx context.Context, in io.Reader, args ...string) (out, notes, fault string) {
	p.t.Helper()
	root := &cobra.Command{Use: "batchtask", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(fleetCommand(), taskCommand()) //nolint:contextcheck // the commands get it from ExecuteContext
	var stdout, stderr strings.Builder
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fault = err.Error()
	}
	for _, text := range []string{stdout.String(), stderr.String(), fault} {
		if strings.Contains(text, pgtest.Password) {
			p.t.Errorf("the password of the database is shown by %v:\n%s", args, text)
		}
	}
	return stdout.String(), stderr.String(), fault
}

// must is call, which may not fail.
func (p *person) must(in string, args ...string) string {
	p.t.Helper()
	out, notes, fault := p.call(p.t.Context(), strings.NewReader(in), args...)
	if fault != "" {
		p.t.Fatalf("%v: %s\n%s", args, fault, notes)
	}
	return out
}

// waitForDevices waits until a fleet has some.
func (p *person) waitForDevices(product string) {
	p.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		if out, _, _ := p.call(p.t.Context(), nil, "fleet", "list", product, "-o", "name"); out != "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			p.t.Fatalf("Product %s has no devices", product)
		}
	}
}

// eachKind runs a test with a product named "door" of each kind of fleet. large is a
// number of devices that takes a while.
func eachKind(t *testing.T, test func(t *testing.T, p *person, large int)) {
	t.Run("Kubernetes", func(t *testing.T) {
		p := newPerson(t)
		p.product("door", testobj.ProductID, "")
		test(t, p, 1200)
	})
	t.Run("Postgres", func(t *testing.T) {
		p := newPerson(t)
		p.product("door", testobj.ProductID, pgtest.Start(t).Database(t))
		test(t, p, 20000)
	})
}

// file writes a file and returns its name.
func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "devices")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// many is a file of n devices, and of a bad line after every hundredth.
func many(n int) (text string, bad int) {
	var b strings.Builder
	b.WriteString("deviceName,disabled\n")
	for i := range n {
		fmt.Fprintf(&b, "device-%06d,\n", i)
		if i%100 == 99 {
			fmt.Fprintf(&b, "device %d,\n", i)
			bad++
		}
	}
	return b.String(), bad
}

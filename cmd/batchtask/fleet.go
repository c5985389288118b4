package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/router"
	"batchtask.dev/operator/internal/fleet/transfer"
)

// clusterOptions say which cluster and namespace, as with kubectl.
type clusterOptions struct {
	kubeconfig string
	context    string
	namespace  string
	// authorities is a folder with certificate authorities, for servers of databases.
	authorities string
}

func (o *clusterOptions) bind(flags *pflag.FlagSet) {
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default from KUBECONFIG, then ~/.kube/config)")
	flags.StringVar(&o.context, "context", "", "context of the kubeconfig (default its current one)")
	flags.StringVarP(&o.namespace, "namespace", "n", "", "namespace (default that of the context)")
	flags.StringVar(&o.authorities, "database-ca-dir", "", "folder with certificate authorities, in .crt or .pem files, that the certificate of a database is checked against besides the system's")
}

// cluster is a namespace at an API server.
type cluster struct {
	client      client.Client
	namespace   string
	authorities string
}

func (o *clusterOptions) open() (*cluster, error) {
	ctrl.SetLogger(logr.Discard()) // or it complains that nobody did
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: o.context}
	overrides.Context.Namespace = o.namespace
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w; KUBECONFIG, --kubeconfig and --context say which", err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("find the namespace: %w", err)
	}
	config.QPS = -1 // the commands bound themselves
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("set up the client: %w", err)
	}
	return &cluster{c, namespace, o.authorities}, nil
}

// get reads an object, which its kind names in errors.
func (c *cluster) get(ctx context.Context, kind, name string, into client.Object) error {
	err := c.client.Get(ctx, client.ObjectKey{Namespace: c.namespace, Name: name}, into)
	switch {
	case err == nil:
		return nil
	case meta.IsNoMatchError(err):
		return fmt.Errorf("read %s %q: %w; is batchtask installed in this cluster?", kind, name, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no %s %q in namespace %q%s", kind, name, c.namespace, c.instead(ctx, kind, name))
	default:
		return fmt.Errorf("read %s %q in namespace %q: %w", kind, name, c.namespace, err)
	}
}

// instead says which Products there are, for who gave another name.
func (c *cluster) instead(ctx context.Context, kind, name string) string {
	const most = 10
	var products v1alpha1.ProductList
	if kind != kindProduct || c.client.List(ctx, &products, client.InNamespace(c.namespace), client.Limit(most)) != nil || len(products.Items) == 0 {
		return "; is it another namespace (-n)?"
	}
	names := make([]string, 0, most)
	for i := range products.Items {
		p := &products.Items[i]
		if p.Spec.ProductID == name {
			return fmt.Sprintf("; that is a product ID, and its Product is named %q", p.Name)
		}
		names = append(names, p.Name)
	}
	return "; there are " + strings.Join(names, ", ")
}

const kindProduct = "Product"

// fleetOf returns the devices of a product, and what ends their use. Without write the
// tables of a database are left as they are.
func (c *cluster) fleetOf(ctx context.Context, p *v1alpha1.Product, write bool) (transfer.Fleet, func(), error) {
	key := fleet.Product{Namespace: p.Namespace, ProductID: p.Spec.ProductID}
	if p.Spec.Fleet.Type != v1alpha1.FleetTypePostgres {
		return transfer.NewInKubernetes(c.client, key), func() {}, nil
	}
	store, end, err := c.database(ctx, p, write)
	if err != nil {
		return nil, nil, err
	}
	return transfer.InPostgres{Store: store, Product: key}, end, nil
}

// database opens the database of a product. No error holds its URL.
func (c *cluster) database(ctx context.Context, p *v1alpha1.Product, write bool) (*postgres.Store, func(), error) {
	if p.Spec.Fleet.Postgres == nil { // the schema does not let it be
		return nil, nil, fmt.Errorf("product %q: spec.fleet.postgres is missing", p.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	fault := func(err error) error {
		return fmt.Errorf("product %q, spec.fleet.postgres.secretRef: %w", p.Name, err)
	}
	key := client.ObjectKey{Namespace: p.Namespace, Name: p.Spec.Fleet.Postgres.SecretRef.Name}
	url, err := router.ReadURL(ctx, c.client, key)
	if err != nil {
		return nil, nil, fault(err)
	}
	store, err := openDatabase(ctx, url, c.authorities, write)
	if err != nil {
		return nil, nil, fault(fmt.Errorf("open the database of Secret %q: %w", key.Name, err))
	}
	return store, store.Close, nil
}

// openTimeout bounds the opening of a database.
const openTimeout = 20 * time.Second

// openDatabase makes the tables of a database that has none, if write is set. Those of
// another version are left to the operator, which may be running.
//
// Who wrote the URL need not be who runs this program, so it names no file of his here
// either: nothing is sent to its server but what stands in it. It may be at any address.
func openDatabase(ctx context.Context, url, folder string, write bool) (*postgres.Store, error) {
	authorities, err := postgres.ReadAuthorities(folder)
	if err != nil {
		return nil, err
	}
	options := postgres.Options{URL: url, Authorities: authorities, MaxConns: 2, ApplicationName: "batchtask fleet", KeepSchema: true}
	store, err := postgres.Open(ctx, options)
	if schema, ok := errors.AsType[*postgres.SchemaError](err); ok && schema.Have == 0 && write {
		options.KeepSchema = false
		return postgres.Open(ctx, options)
	}
	return store, err
}

// interruptible returns a context that Ctrl-C ends; a second one ends the program at
// once.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func fleetCommand() *cobra.Command {
	opts := &clusterOptions{}
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "Bring devices into a fleet, and look at them",
		Args:  cobra.NoArgs,
	}
	opts.bind(cmd.PersistentFlags())
	cmd.AddCommand(fleetImportCommand(opts), fleetExportCommand(opts), fleetListCommand(opts), fleetGetCommand(opts))
	return cmd
}

// openProduct opens the cluster and reads the Product of this name.
func (o *clusterOptions) openProduct(ctx context.Context, name string) (*cluster, *v1alpha1.Product, error) {
	c, err := o.open()
	if err != nil {
		return nil, nil, err
	}
	p := &v1alpha1.Product{}
	if err := c.get(ctx, kindProduct, name, p); err != nil {
		return nil, nil, err
	}
	return c, p, nil
}

// withFleet runs a command that reads the fleet of a product.
func withFleet(cmd *cobra.Command, opts *clusterOptions, name string, run func(context.Context, *v1alpha1.Product, transfer.Fleet) error) error {
	ctx, stop := interruptible(cmd)
	defer stop()
	c, p, err := opts.openProduct(ctx, name)
	if err != nil {
		return err
	}
	devices, end, err := c.fleetOf(ctx, p, false)
	if err != nil {
		return err
	}
	defer end()
	return run(ctx, p, devices)
}

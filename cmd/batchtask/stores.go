package main

import (
	"context"
	"fmt"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/router"
)

// databaseOptions are the settings of the databases that fleets are kept in.
type databaseOptions struct {
	connections  int32
	total        int
	perNamespace int
	networks     []string
	authorities  string
}

func (o *databaseOptions) bind(flags *pflag.FlagSet) {
	flags.Int32Var(&o.connections, "database-connections", postgres.DefaultMaxConns, "connections of this process to one database as one user, at most; all Secrets that name them share those")
	flags.IntVar(&o.total, "database-connections-total", router.DefaultCalls, "connections of this process to all databases together, at most; a namespace uses as many as are free besides, at most")
	flags.IntVar(&o.perNamespace, "databases-per-namespace", router.DefaultPerNamespace, "how many databases a namespace may use at once")
	flags.StringSliceVar(&o.networks, "database-networks", postgres.DefaultNetworks(), "where databases may be: a list of networks such as 10.0.0.0/8, and of the words public, private, loopback and link-local")
	flags.StringVar(&o.authorities, "database-ca-dir", "", "folder with certificate authorities, in .crt or .pem files, that certificates of databases are checked against besides the system's; read again for each database that is opened")
}

func (o *databaseOptions) validate() error {
	for name, n := range map[string]int{
		"database-connections": int(o.connections), "database-connections-total": o.total, "databases-per-namespace": o.perNamespace,
	} {
		if n < 1 {
			return fmt.Errorf("--%s=%d: must be at least 1", name, n)
		}
	}
	if _, err := postgres.ParseNetworks(o.networks); err != nil {
		return fmt.Errorf("--database-networks: %w", err)
	}
	_, err := postgres.ReadAuthorities(o.authorities)
	return err
}

// databases opens the databases that Products name, with Secrets read by live.
func (o *databaseOptions) databases(live client.Reader, log logr.Logger) (*router.Databases, error) {
	networks, err := postgres.ParseNetworks(o.networks)
	if err != nil {
		return nil, fmt.Errorf("--database-networks: %w", err)
	}
	connections := postgres.NewConnections(o.total)
	return router.NewDatabases(live, clock.RealClock{}, log, router.Kind{
		Identity: postgres.Identity,
		Reason:   postgres.Reason,
		Open: func(ctx context.Context, url string) (router.Database, error) {
			authorities, err := postgres.ReadAuthorities(o.authorities)
			if err != nil {
				return nil, err
			}
			return postgres.Open(ctx, postgres.Options{
				URL: url, MaxConns: o.connections, Networks: networks, Authorities: authorities, Connections: connections,
			})
		},
	}, router.Limits{Calls: o.total, CallsEach: int(o.connections), PerNamespace: o.perNamespace}), nil
}

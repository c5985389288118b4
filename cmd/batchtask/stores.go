package main

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/router"
)

// databaseOptions are the settings of the databases that fleets are kept in.
type databaseOptions struct {
	connections int32
}

func (o *databaseOptions) bind(flags *pflag.FlagSet) {
	flags.Int32Var(&o.connections, "database-connections", postgres.DefaultMaxConns, "connections of this process for each Secret that names a database, at most")
}

func (o *databaseOptions) validate() error {
	if o.connections < 1 {
		return fmt.Errorf("--database-connections=%d: must be at least 1", o.connections)
	}
	return nil
}

// databases opens the databases that Products name, with Secrets read by live.
func (o *databaseOptions) databases(live client.Reader) *router.Databases {
	return router.NewDatabases(live, clock.RealClock{}, func(ctx context.Context, url string) (router.Database, error) {
		return postgres.Open(ctx, postgres.Options{URL: url, MaxConns: o.connections})
	})
}

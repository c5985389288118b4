package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/fleet/router"
	"batchtask.dev/operator/internal/mqtt"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/shadow/service"
)

// The role of the shadow service is config/shadow/role.yaml, written by hand: the
// generator makes one role, the manager's, of all markers that it finds.

// objectsAtOnce is how many Device objects are written at once: an API server takes no more
// of them a second from more.
const objectsAtOnce = 32

// shadowOptions are the settings of the shadow service.
type shadowOptions struct {
	commonOptions
	service service.Options
}

func (o *shadowOptions) bind(flags *pflag.FlagSet) {
	o.commonOptions.bind(flags)

	flags.StringVar(&o.service.ClientID, "mqtt-client-id", service.DefaultClientID, "client ID at the broker, under which it keeps messages while no replica is connected; the same for all replicas")
	flags.StringVar(&o.service.SharedGroup, "mqtt-shared-group", "", "subscribe as a member of this group, among which the broker divides the messages; needs --leader-elect=false, and a --mqtt-client-id for each replica")
	flags.IntVar(&o.service.Workers, "workers", service.DefaultWorkers, "how many messages are carried out at once; of one namespace an eighth of it")
	flags.IntVar(&o.service.QueueLength, "queue-length", service.DefaultQueueLength, "how many messages of up to 4 KiB may be held, larger ones count for several; of several namespaces none holds more than an eighth, and what is over that is refused")
	flags.Float64Var(&o.service.Rate, "device-rate", service.DefaultRate, "how many messages a second a device may send; what is over that is dropped")
	flags.IntVar(&o.service.Burst, "device-burst", service.DefaultBurst, "how many messages a device may send at once")
	flags.DurationVar(&o.service.RetryTime, "retry-time", service.DefaultRetryTime, "how long a shadow that cannot be read or written is tried again before the device gets an error; a product whose store has failed for that long is away, and its devices get the error at once")
	flags.DurationVar(&o.service.DrainTimeout, "drain-timeout", service.DefaultDrainTimeout, "how long a service that ends goes on with the messages that it has read")
}

// validate names the first setting that cannot work.
func (o *shadowOptions) validate() error {
	if err := o.commonOptions.validate(); err != nil {
		return err
	}
	switch {
	case o.service.SharedGroup != "" && o.leaderElect:
		return errors.New("--mqtt-shared-group is set with --leader-elect: only one replica would subscribe")
	case o.service.Workers < 1:
		return fmt.Errorf("--workers=%d: must be at least 1", o.service.Workers)
	case o.service.QueueLength < 1:
		return fmt.Errorf("--queue-length=%d: must be at least 1", o.service.QueueLength)
	case !(o.service.Rate > 0):
		return fmt.Errorf("--device-rate=%v: must be more than 0", o.service.Rate)
	case o.service.Burst < 1:
		return fmt.Errorf("--device-burst=%d: must be at least 1", o.service.Burst)
	case o.service.RetryTime <= 0 || o.service.RetryTime > mqtt.DefaultKeepAlive:
		return fmt.Errorf("--retry-time=%s: must be positive and at most %s, the time after which the broker wants to hear something", o.service.RetryTime, mqtt.DefaultKeepAlive)
	case o.service.DrainTimeout <= 0:
		return fmt.Errorf("--drain-timeout=%s: must be positive", o.service.DrainTimeout)
	}
	return nil
}

func shadowCommand() *cobra.Command {
	opts := &shadowOptions{}
	cmd := &cobra.Command{
		Use:   "shadow",
		Short: "Answer devices that report to their shadows or ask for them",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := opts.validate(); err != nil {
				return err
			}
			return runShadow(ctrl.SetupSignalHandler(), opts, opts.logger())
		},
	}
	opts.bind(cmd.Flags())
	return cmd
}

// runShadow runs until stop ends, or the leader's Lease is lost.
func runShadow(stop context.Context, opts *shadowOptions, log logr.Logger) error {
	drain := opts.service.DrainTimeout
	mgr, err := opts.newManager(log, "batchtask-shadow", ctrl.Options{GracefulShutdownTimeout: new(2 * drain)})
	if err != nil {
		return err
	}
	live, err := newClient(mgr)
	if err != nil {
		return err
	}
	objects, err := kube.New(stop, mgr.GetCache(), live, kube.WithConcurrency(min(opts.service.Workers, objectsAtOnce)))
	if err != nil {
		return fmt.Errorf("set up the fleet of Device objects: %w", err)
	}
	databases, err := opts.databases(live, log)
	if err != nil {
		return err
	}
	defer databases.Close()
	store := &router.Router{Products: mgr.GetClient(), Kubernetes: objects, Databases: databases}
	if err := product.Index(stop, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	devices, err := newShadowService(opts, store, mgr.GetClient(), log)
	if err != nil {
		return err
	}
	if err := mgr.Add(onLeader{devices.Start}); err != nil {
		return fmt.Errorf("add the shadow service: %w", err)
	}
	if err := addChecks(mgr); err != nil {
		return err
	}
	if err := mgr.Start(stop); err != nil {
		return fmt.Errorf("shadow service: %w", err)
	}
	return nil
}

func newShadowService(opts *shadowOptions, store fleet.Store, products client.Reader, log logr.Logger) (*service.Service, error) {
	opts.service.MQTT = opts.mqtt
	opts.service.MQTT.Log = log.WithName("shadow")
	opts.service.MQTT.Metrics = mqtt.NewMetrics(metrics.Registry)
	opts.service.Metrics = service.NewMetrics(metrics.Registry)
	s, err := service.New(store, product.Finder{Reader: products}, opts.service)
	if err != nil {
		return nil, fmt.Errorf("settings of the shadow service: %w", err)
	}
	return s, nil
}

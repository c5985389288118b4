package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	webhookserver "sigs.k8s.io/controller-runtime/pkg/webhook"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/mqtt"
	"batchtask.dev/operator/internal/quota"
)

// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,namespace=batchtask-system,verbs=get;create;update
// +kubebuilder:rbac:groups="",resources=events,namespace=batchtask-system,verbs=create;patch
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups=authorization.k8s.io,resources=subjectaccessreviews,verbs=create

func managerCommand() *cobra.Command {
	opts := &managerOptions{}
	cmd := &cobra.Command{
		Use:   "manager",
		Short: "Run the controllers, the admission webhooks and, on the leader, the tasks",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := opts.validate(); err != nil {
				return err
			}
			log := zap.New(zap.UseFlagOptions(&opts.log))
			ctrl.SetLogger(log)
			klog.SetLogger(log.WithName("client-go"))
			return runManager(ctrl.SetupSignalHandler(), opts, log)
		},
	}
	opts.bind(cmd.Flags())
	return cmd
}

// runManager runs until stop ends, or the leader's Lease is lost.
func runManager(stop context.Context, opts *managerOptions, log logr.Logger) error {
	pool, err := newPool(opts, log)
	if err != nil {
		return err
	}
	mgr, err := newManager(opts, log)
	if err != nil {
		return err
	}
	// running outlives stop by the time it takes to write the last checkpoints.
	running, end := context.WithCancel(context.WithoutCancel(stop))
	defer end()

	live, err := client.New(mgr.GetConfig(), client.Options{HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper()})
	if err != nil {
		return fmt.Errorf("set up the client: %w", err)
	}
	store, err := kube.New(running, mgr.GetCache(), live, kube.WithConcurrency(opts.shadowParallel))
	if err != nil {
		return fmt.Errorf("set up the fleet of Device objects: %w", err)
	}
	clk := clock.RealClock{}
	wake := &controllers.Wakeups{}
	exec := executor.New(running, store, pool, wake.Wake, executor.Options{
		Window: opts.mqtt.Window, ResendLimit: opts.resendLimit, CheckpointInterval: opts.checkpoint, DrainTimeout: opts.drain,
		Clock: clk, Log: log.WithName("executor"),
	})
	defer exec.Close()
	ledger := quota.NewLedger(live, live, clk)

	if err := mgr.Add(onLeader{pool.Start}); err != nil {
		return fmt.Errorf("add the MQTT connections: %w", err)
	}
	if err := controllers.Setup(running, mgr, controllers.Parts{
		Ledger: ledger, Store: store, Executor: exec, Wake: wake, Clock: clk, Grace: opts.slotGrace,
		Metrics: controllers.NewMetrics(metrics.Registry, mgr.GetClient()),
	}); err != nil {
		return err
	}
	if err := setupWebhooks(running, mgr, opts, ledger, store, clk); err != nil {
		return err
	}
	if err := addChecks(mgr); err != nil {
		return err
	}

	go func() {
		<-stop.Done()
		drain(running, exec, opts.drain, log)
		end()
	}()
	if err := mgr.Start(running); err != nil {
		return fmt.Errorf("manager: %w", err)
	}
	return nil
}

// addChecks adds what /healthz and /readyz ask: a replica is ready once its caches
// have been filled, and its webhooks (see setupWebhooks) answer.
func addChecks(mgr ctrl.Manager) error {
	synced := func(req *http.Request) error {
		ctx, cancel := context.WithTimeout(req.Context(), time.Second)
		defer cancel()
		if !mgr.GetCache().WaitForCacheSync(ctx) {
			return errors.New("the caches have not been filled yet")
		}
		return nil
	}
	if err := errors.Join(mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("caches", synced)); err != nil {
		return fmt.Errorf("add health checks: %w", err)
	}
	return nil
}

// drain lets the running tasks write their last checkpoints, so that a planned
// restart sends nothing twice.
func drain(ctx context.Context, exec *executor.Executor, timeout time.Duration, log logr.Logger) {
	ctx, cancel := context.WithTimeout(ctx, timeout+2*time.Second)
	defer cancel()
	if err := exec.Drain(ctx); err != nil {
		log.Info("Ended before all tasks were drained", "detail", err.Error())
	}
}

func newPool(opts *managerOptions, log logr.Logger) (*mqtt.Pool, error) {
	opts.mqtt.Log = log.WithName("mqtt")
	opts.mqtt.Metrics = mqtt.NewMetrics(metrics.Registry)
	pool, err := mqtt.New(opts.mqtt)
	if err != nil {
		return nil, fmt.Errorf("--mqtt-* settings: %w", err)
	}
	return pool, nil
}

func newManager(opts *managerOptions, log logr.Logger) (ctrl.Manager, error) {
	return opts.newManager(log, "batchtask-manager", func(o *ctrl.Options) {
		o.WebhookServer = webhookserver.NewServer(webhookserver.Options{
			Port: opts.webhookPort, CertDir: opts.webhookCertDir,
			TLSOpts: []func(*tls.Config){func(c *tls.Config) { c.MinVersion = tls.VersionTLS12 }},
		})
	})
}

// newManager makes a manager as the settings say, whose leader the Lease of that
// name elects. set changes its options.
func (o *commonOptions) newManager(log logr.Logger, lease string, set func(*ctrl.Options)) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("build the scheme: %w", err)
		}
	}
	cfg, err := ctrl.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	serving := metricsserver.Options{BindAddress: o.metricsAddr, SecureServing: o.metricsSecure}
	if o.metricsSecure {
		serving.FilterProvider = filters.WithAuthenticationAndAuthorization
	}
	options := ctrl.Options{
		Scheme: scheme, Logger: log, Metrics: serving, HealthProbeBindAddress: o.probeAddr, PprofBindAddress: o.pprofAddr,
		LeaderElection: o.leaderElect, LeaderElectionID: lease, LeaderElectionNamespace: o.namespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &o.leaseDuration, RenewDeadline: &o.renewDeadline, RetryPeriod: &o.retryPeriod,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         map[client.Object]cache.ByObject{&v1alpha1.Device{}: {Transform: kube.StripDevice}},
		},
	}
	set(&options)
	mgr, err := ctrl.NewManager(cfg, options)
	if err != nil {
		return nil, fmt.Errorf("set up the manager: %w", err)
	}
	return mgr, nil
}

// onLeader runs on the elected replica only.
type onLeader struct {
	start func(context.Context) error
}

var _ manager.LeaderElectionRunnable = onLeader{}

// Start implements manager.Runnable.
func (o onLeader) Start(ctx context.Context) error { return o.start(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (onLeader) NeedLeaderElection() bool { return true }

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	webhookserver "sigs.k8s.io/controller-runtime/pkg/webhook"

	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/fleet/router"
	"batchtask.dev/operator/internal/quota"
)

// To create cannot be granted by name, so it is granted alone.
//
// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,namespace=batchtask-system,verbs=create
// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,resourceNames=batchtask-manager,namespace=batchtask-system,verbs=get;update
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
			return runManager(ctrl.SetupSignalHandler(), opts, opts.logger())
		},
	}
	opts.bind(cmd.Flags())
	return cmd
}

// runManager runs until stop ends, or the leader's Lease is lost.
func runManager(stop context.Context, opts *managerOptions, log logr.Logger) error {
	paceCollection(stop)
	pool, err := opts.newPool(log)
	if err != nil {
		return err
	}
	elected, err := opts.newElection("batchtask-manager")
	if err != nil {
		return err
	}
	mgr, err := newManager(opts, elected, log)
	if err != nil {
		return err
	}
	// running outlives stop by the time it takes to write the last checkpoints.
	running, end := context.WithCancelCause(context.WithoutCancel(stop))
	defer end(nil)

	live, err := newClient(mgr)
	if err != nil {
		return err
	}
	objects, err := kube.New(running, mgr.GetCache(), live, kube.WithConcurrency(opts.shadowParallel))
	if err != nil {
		return fmt.Errorf("set up the fleet of Device objects: %w", err)
	}
	databases, err := opts.databases(live, log)
	if err != nil {
		return err
	}
	defer databases.Close()
	store := &router.Router{Products: mgr.GetClient(), Kubernetes: objects, Databases: databases}
	clk := clock.RealClock{}
	wake := &controllers.Wakeups{}
	exec := executor.New(running, store, pool, wake.Wake, executor.Options{
		Window: opts.mqtt.Window, ResendLimit: opts.resendLimit, CheckpointInterval: opts.checkpoint, DrainTimeout: opts.drain,
		AckTimeout: opts.mqtt.AckTimeout, UnacknowledgedLimit: opts.unacknowledged, Patience: opts.patience, PageMemory: opts.pageMemory << 20,
		Clock: clk, Log: log.WithName("executor"), Metrics: executor.NewMetrics(metrics.Registry),
	})
	defer exec.Close()
	ledger := quota.NewLedger(live, live, clk)

	if err := mgr.Add(onLeader{pool.Start}); err != nil {
		return fmt.Errorf("add the MQTT connections: %w", err)
	}
	if err := controllers.Setup(running, mgr, controllers.Parts{
		Ledger: ledger, Store: store, Executor: exec, Wake: wake, Clock: clk, Grace: opts.slotGrace, Quarantine: opts.quarantine, Results: databases.Results,
		Metrics: controllers.NewMetrics(metrics.Registry), Lease: elected.lease, Stop: end, StatusWrites: float64(opts.statusWrites),
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
		elected.lease.StepDown() // or a task that was drained would begin again
		drain(running, exec, opts.drain, log)
		end(nil)
	}()
	if err := mgr.Start(running); err != nil {
		return fmt.Errorf("manager: %w", err)
	}
	if err := context.Cause(running); !errors.Is(err, context.Canceled) {
		return err
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

func newManager(opts *managerOptions, elected election, log logr.Logger) (ctrl.Manager, error) {
	secure := []func(*tls.Config){func(c *tls.Config) { c.MinVersion = tls.VersionTLS12 }}
	if opts.webhookClientCA != "" {
		clients := &webhookClients{caFile: opts.webhookClientCA, names: opts.webhookClientNames}
		if _, err := clients.authorities(time.Now()); err != nil {
			return nil, err
		}
		secure = append(secure, clients.apply)
	}
	mgr, err := opts.newManager(log, "batchtask-manager", ctrl.Options{
		LeaderElectionResourceLockInterface: elected.lock,
		WebhookServer: webhookserver.NewServer(webhookserver.Options{
			Port: opts.webhookPort, CertDir: opts.webhookCertDir, TLSOpts: secure,
		}),
	})
	if err == nil {
		elected.recordIn(mgr)
	}
	return mgr, err
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

package main

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/fleet/router"
	"batchtask.dev/operator/internal/mqtt"
	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/internal/shim"
)

// maxHeaderBytes bounds the header of a call, of which the query is a part: four times what
// a task with the longest payload takes with all of it percent-encoded. It is read before
// anybody has shown credentials.
const maxHeaderBytes = 256 << 10

func shimCommand() *cobra.Command {
	opts := &shimOptions{}
	cmd := &cobra.Command{
		Use:   "shim",
		Short: "Serve callers of the legacy HTTP API: their calls become BatchTasks",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := opts.validate(); err != nil {
				return err
			}
			return runShim(ctrl.SetupSignalHandler(), opts, opts.logger())
		},
	}
	opts.bind(cmd.Flags())
	return cmd
}

// runShim runs until ctx ends, and then finishes the calls in flight.
func runShim(ctx context.Context, opts *shimOptions, log logr.Logger) error {
	listener, err := opts.listen(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	grace := opts.shutdownTimeout + 5*time.Second
	mgr, err := opts.newManager(log, ctrl.Options{GracefulShutdownTimeout: &grace})
	if err != nil {
		return err
	}
	live, err := newClient(mgr)
	if err != nil {
		return err
	}
	clk, counted := clock.RealClock{}, shim.NewMetrics(metrics.Registry)
	accounts := shim.NewAccounts(counted)
	synced, err := watchCredentials(logr.NewContext(ctx, log.WithName("credentials")), mgr, accounts, opts.namespaces)
	if err != nil {
		return err
	}
	serving, err := opts.secure(ctx, listener, mgr, live)
	if err != nil {
		return err
	}
	pool, publisher, err := opts.broker(log)
	if err != nil {
		return err
	}
	databases, err := opts.databases(live, log)
	if err != nil {
		return err
	}
	defer databases.Close()
	handler := shim.NewHandler(shim.Options{
		Client: live, Shadows: &router.Shadows{Products: live, Kubernetes: kube.NewShadows(live), Databases: databases}, Publisher: publisher, Clock: clk, Timeout: opts.callTimeout, MaxInFlight: opts.maxInFlight, Failures: opts.failures,
		Log: log.WithName("access"), Metrics: counted,
		Verifier: qcloud.NewVerifier(accounts, clk, qcloud.Options{
			Hosts: opts.hosts, Window: opts.clockWindow, MaxNonces: opts.maxNonces(), Limiter: shim.NewLimits(opts.rate, opts.burst, clk), RequireSignedAction: opts.signAction,
		}),
	})
	server := &manager.Server{
		Name: "shim", Listener: serving, ShutdownTimeout: &opts.shutdownTimeout,
		Server: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: 10 * time.Second,
			ReadTimeout:       30 * time.Second,
			WriteTimeout:      30*time.Second + 2*opts.callTimeout + 10*time.Second,
			IdleTimeout:       90 * time.Second,
			MaxHeaderBytes:    maxHeaderBytes,
			// Whoever can connect can make it write a line, by a handshake that fails, say.
			ErrorLog: stdlog.New(debugLines{log.WithName("http")}, "", 0),
		},
	}
	if err := mgr.Add(serveWhen{synced, pool, server}); err != nil {
		return fmt.Errorf("add the HTTP server: %w", err)
	}
	if err := addChecks(mgr); err != nil {
		return err
	}
	ready := func(*http.Request) error {
		if !synced() {
			return errors.New("the credentials have not been read yet")
		}
		return nil
	}
	if err := mgr.AddReadyzCheck("credentials", ready); err != nil {
		return fmt.Errorf("add readiness check: %w", err)
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	return nil
}

// debugLines writes each line to the log where that has everything.
type debugLines struct{ log logr.Logger }

// Write implements [io.Writer].
func (d debugLines) Write(line []byte) (int, error) {
	d.log.V(1).Info("HTTP server", "detail", strings.TrimSpace(string(line)))
	return len(line), nil
}

// listen takes the address at once, so that one that cannot be had is told in one
// line; nobody is answered before the credentials have been read.
func (o *shimOptions) listen(ctx context.Context) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", o.bindAddr)
	if err != nil {
		return nil, fmt.Errorf("--bind-address=%s: %w", o.bindAddr, err)
	}
	return listener, nil
}

// broker returns the connections to the broker, as what they are and as what sends
// messages; nil both where no broker is configured.
func (o *shimOptions) broker(log logr.Logger) (*mqtt.Pool, shim.Publisher, error) {
	if o.mqtt.URL == "" {
		log.Info("No --mqtt-url: the calls that send messages to devices are not served")
		return nil, nil, nil
	}
	pool, err := o.newPool(log)
	return pool, pool, err
}

// serveWhen serves as soon as synced says so: before, a caller would be told that
// its credentials do not exist. The pool, unless nil, ends after the server, which
// may have calls in flight that need it.
type serveWhen struct {
	synced func() bool
	pool   *mqtt.Pool
	server *manager.Server
}

var _ manager.LeaderElectionRunnable = serveWhen{}

// Start implements [manager.Runnable].
func (s serveWhen) Start(ctx context.Context) error {
	if !toolscache.WaitForCacheSync(ctx.Done(), s.synced) {
		return nil
	}
	if s.pool == nil {
		return s.server.Start(ctx)
	}
	connected, disconnect := context.WithCancel(context.WithoutCancel(ctx))
	defer disconnect()
	ended := make(chan error, 1)
	go func() { ended <- s.pool.Start(connected) }()
	err := s.server.Start(ctx)
	disconnect()
	return errors.Join(err, <-ended)
}

// NeedLeaderElection implements [manager.LeaderElectionRunnable]: every replica serves.
func (serveWhen) NeedLeaderElection() bool { return false }

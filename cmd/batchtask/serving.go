package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	uberzap "go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"batchtask.dev/operator/api/v1alpha1"
)

// servingOptions are the settings that every subcommand which runs for long has:
// its log, and where it can be watched.
type servingOptions struct {
	log           zap.Options
	metricsAddr   string
	metricsSecure bool
	probeAddr     string
	pprofAddr     string
}

func (o *servingOptions) bind(flags *pflag.FlagSet) {
	flags.StringVar(&o.metricsAddr, "metrics-bind-address", ":8443", "address of /metrics; 0 for none")
	flags.BoolVar(&o.metricsSecure, "metrics-secure", true, "serve /metrics over HTTPS to callers that the API server authorizes")
	flags.StringVar(&o.probeAddr, "health-probe-bind-address", ":8081", "address of /healthz and /readyz")
	flags.StringVar(&o.pprofAddr, "pprof-bind-address", "0", "address of /debug/pprof, for whoever looks into speed or memory; 0 for none")
	goFlags := flag.NewFlagSet("", flag.ContinueOnError)
	o.log.BindFlags(goFlags)
	flags.AddGoFlagSet(goFlags)
}

// logger returns the log, and makes it that of all libraries.
func (o *servingOptions) logger() logr.Logger {
	log := o.newLogger()
	ctrl.SetLogger(log)
	klog.SetLogger(log.WithName("client-go"))
	return log
}

func (o *servingOptions) newLogger() logr.Logger {
	return zap.New(zap.UseFlagOptions(&o.log), unsampled)
}

// unsampled keeps every line of the log. The default for production leaves out most of more
// than a hundred a second that are alike, as those of the HTTP front's calls are, unless a
// level of -2 is logged; so that is what the core takes, and the level is raised again after it.
func unsampled(o *zap.Options) {
	const unsampledLevel = zapcore.Level(-2)
	var level zapcore.LevelEnabler = zapcore.InfoLevel
	if o.Level != nil {
		level = o.Level
	}
	if o.Development || level.Enabled(unsampledLevel) {
		return
	}
	o.Level = unsampledLevel
	o.ZapOpts = append(slices.Clip(o.ZapOpts), uberzap.IncreaseLevel(level))
}

func (o *servingOptions) metrics() metricsserver.Options {
	serving := metricsserver.Options{BindAddress: o.metricsAddr, SecureServing: o.metricsSecure}
	if o.metricsSecure {
		serving.FilterProvider = filters.WithAuthenticationAndAuthorization
	}
	return serving
}

// newScheme returns the types of Kubernetes and of this project.
func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("build the scheme: %w", err)
		}
	}
	return scheme, nil
}

// newManager makes a manager as the settings and the other options say.
func (o *servingOptions) newManager(log logr.Logger, options ctrl.Options) (ctrl.Manager, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	options.Scheme = scheme
	cfg, err := ctrl.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	options.Logger, options.Metrics = log, o.metrics()
	options.HealthProbeBindAddress, options.PprofBindAddress = o.probeAddr, o.pprofAddr
	mgr, err := ctrl.NewManager(cfg, options)
	if err != nil {
		return nil, fmt.Errorf("set up: %w", err)
	}
	return mgr, nil
}

// newClient makes a client that reads past the manager's cache.
func newClient(mgr ctrl.Manager) (client.Client, error) {
	live, err := client.New(mgr.GetConfig(), client.Options{HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper()})
	if err != nil {
		return nil, fmt.Errorf("set up the client: %w", err)
	}
	return live, nil
}

// addChecks adds what /healthz and /readyz ask of every subcommand: a replica is
// ready once its caches have been filled.
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

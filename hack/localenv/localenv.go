// Package localenv runs the operator on one machine: etcd and kube-apiserver, an
// MQTT broker, a PostgreSQL server if asked for, the manager, the shadow service and
// the shim (the legacy HTTP API), each a process of its own, and ends them all. It is
// for development, demonstrations, measurements and tests that need everything.
//
// A program that uses it calls [BecomeChild] first thing in main.
package localenv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
)

// EnvFile is the file in Options.Dir that tells others how to reach the
// environment. Run removes one that is left over; who writes it, with
// WriteExports, removes it in the end.
const EnvFile = "env"

// DefaultMQTTAddress is where the broker listens if nothing else is asked for.
const DefaultMQTTAddress = "127.0.0.1:1883"

const kubeConfigFile = "kubeconfig"

// Options say what to run.
type Options struct {
	// Root is the directory of the module: config/ is read from there. Required.
	Root string
	// Dir holds logs, the kubeconfig and temporary files; it is made if missing.
	// Required.
	Dir string
	// Assets is the directory of etcd and kube-apiserver. Required; see FindAssets.
	Assets string
	// Program is the batchtask binary. Required.
	Program string
	// Namespace is made, and is the one that kubectl uses by default. Required.
	Namespace string

	// MQTTURL is a broker that runs already. Where it is set none is started, and
	// MQTTAddress and Broker do not count. The shadow service answers all devices at
	// that broker, also those that are unknown here.
	MQTTURL string
	// MQTTAddress is where the broker listens: host:port, port 0 for any free one.
	// Where it is not set, DefaultMQTTAddress or, if that is taken, any free port.
	MQTTAddress string
	// Broker says which broker to start.
	Broker BrokerKind
	// BrokerFront is given the broker's URL and returns the one that everybody shall use:
	// that of something which stands before the broker. Nil for the broker itself.
	BrokerFront func(ctx context.Context, brokerURL string) (string, error)

	// DatabaseURL is a database that exists already, of PostgreSQL. Run makes a schema
	// in it, named after Dir, removes that in the end, and leaves all else alone.
	DatabaseURL string
	// Database starts a PostgreSQL server with an empty database, which must be
	// installed; see FindPostgres. With DatabaseURL it does not count.
	Database bool

	// MemoryLimit is how much memory the manager, the shadow service and the shim may each
	// use before they collect garbage more often, as GOMEMLIMIT has it; empty for any amount.
	MemoryLimit string

	// NoManager leaves the manager out, and with it who answers admission requests;
	// ManagerFlags do not count then.
	NoManager bool
	// ManagerFlags are given to the manager besides those it needs here.
	ManagerFlags []string

	// NoShadow leaves the shadow service out; ShadowFlags do not count then.
	NoShadow bool
	// ShadowFlags are given to the shadow service besides those it needs here.
	ShadowFlags []string

	// NoShim leaves the shim out; ShimAddress and ShimFlags do not count then.
	NoShim bool
	// ShimAddress is where the shim listens, without TLS: host:port, port 0 for any
	// free one. Where it is not set, DefaultShimAddress or, if that is taken, any
	// free port.
	ShimAddress string
	// ShimFlags are given to the shim besides those it needs here.
	ShimFlags []string

	// Progress is told what has been started, in a few words; nil for no one.
	Progress func(string)
}

// Env is a running environment.
type Env struct {
	// Config connects to the API server as an administrator, without client-side
	// throttling.
	Config *rest.Config
	// Client reads and writes without a cache. Its scheme has the types of
	// Kubernetes and of this project.
	Client client.WithWatch
	// Program is the path of the batchtask binary.
	Program string
	// KubeConfig is the path of a kubeconfig file for an administrator, with
	// Namespace as its default namespace.
	KubeConfig string
	// Namespace exists.
	Namespace string
	// MQTTURL is the broker's URL. It may hold a password.
	MQTTURL string
	// DatabaseURL is the URL of the database, with its password and the schema to use;
	// empty without Options.DatabaseURL and Options.Database.
	DatabaseURL string
	// MetricsURL is where the manager shows its metrics.
	MetricsURL string
	// ManagerLog is the path of the manager's log.
	ManagerLog string
	// ShadowLog is the path of the shadow service's log; empty with Options.NoShadow.
	ShadowLog string

	// APIURL is the root of the shim: http://host:port. It and what follows is empty
	// with Options.NoShim.
	APIURL string
	// SecretID and SecretKey are credentials for the account that Namespace is.
	SecretID, SecretKey string
	// ShimLog is the path of the shim's log.
	ShimLog string
}

// Run starts everything, calls body, and ends everything: when body returns, when
// something does not start, and when ctx ends. The context that body gets also
// ends when one of the programs does; Run then returns why. The programs end
// with this process even if it is killed (on Linux).
//
// Only one Run at a time may use Options.Dir: another returns a *RunningError. Run
// sets TMPDIR for this process and its children, so that a temporary file that is
// left over, by whomever, lies in Options.Dir and is removed by the next Run.
func Run(ctx context.Context, opts Options, body func(context.Context, *Env) error) (err error) {
	for _, path := range []*string{&opts.Root, &opts.Dir, &opts.Assets, &opts.Program} {
		if *path, err = filepath.Abs(*path); err != nil {
			return fmt.Errorf("setting up the local environment: %w", err)
		}
	}
	if opts.Progress == nil {
		opts.Progress = func(string) {}
	}
	raiseFileLimit()
	unlock, err := lock(opts.Dir)
	if err != nil {
		return err
	}
	defer unlock()

	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s := &session{Options: opts, end: end}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.prepare(); err != nil {
		return err
	}
	env, err := s.start(ctx)
	if err == nil {
		err = body(ctx, env)
	}
	// A program that has ended explains whatever failed after it.
	var ended *EndedError
	if errors.As(context.Cause(ctx), &ended) {
		return ended
	}
	return err
}

// session is what one Run has started.
type session struct {
	Options
	end        context.CancelCauseFunc
	stops      []func() error
	systemTemp string // for temporary files that cannot be in Dir
}

// onStop registers what ends a part. Parts end in the reverse order.
func (s *session) onStop(stop func() error) { s.stops = append(s.stops, stop) }

func (s *session) stop() error {
	var errs []error
	for i := len(s.stops) - 1; i >= 0; i-- {
		errs = append(errs, s.stops[i]())
	}
	s.stops = nil
	return errors.Join(errs...)
}

func (s *session) path(name string) string { return filepath.Join(s.Dir, name) }

// prepare clears away what a Run that was killed has left.
func (s *session) prepare() error {
	for _, name := range []string{EnvFile, kubeConfigFile} {
		if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing what is left of an earlier environment: %w", err)
		}
	}
	s.systemTemp = os.TempDir()
	if err := os.RemoveAll(s.databaseDir()); err != nil {
		return fmt.Errorf("removing what is left of an earlier database: %w", err)
	}
	temp := s.path("tmp")
	if err := os.RemoveAll(temp); err != nil {
		return fmt.Errorf("clearing temporary files: %w", err)
	}
	if err := os.MkdirAll(temp, 0o700); err != nil {
		return fmt.Errorf("making a directory for temporary files: %w", err)
	}
	before, had := os.LookupEnv("TMPDIR")
	if err := os.Setenv("TMPDIR", temp); err != nil {
		return fmt.Errorf("setting TMPDIR: %w", err)
	}
	s.onStop(func() error {
		if had {
			_ = os.Setenv("TMPDIR", before)
		} else {
			_ = os.Unsetenv("TMPDIR")
		}
		return os.RemoveAll(temp)
	})
	return nil
}

func (s *session) start(ctx context.Context) (*Env, error) {
	if _, err := os.Stat(s.Program); err != nil {
		return nil, fmt.Errorf("looking for the manager (`make build` makes it): %w", err)
	}
	// First, because it takes no time and may not be as the user thinks.
	mqttURL, broker, err := s.startBroker(ctx)
	if err != nil {
		return nil, err
	}
	s.Progress("broker: " + broker)
	if s.BrokerFront != nil {
		if mqttURL, err = s.BrokerFront(ctx, mqttURL); err != nil {
			return nil, fmt.Errorf("setting up what stands before the broker: %w", err)
		}
	}
	env := &Env{Namespace: s.Namespace, Program: s.Program, KubeConfig: s.path(kubeConfigFile), MQTTURL: mqttURL, ManagerLog: s.path("manager.log")}
	if err := s.openDatabase(ctx, env); err != nil {
		return nil, err
	}

	config, webhook, err := s.startControlPlane(ctx)
	if err != nil {
		return nil, err
	}
	s.Progress("control plane: kube-apiserver and etcd at " + config.Host)
	env.Config = config
	if env.Client, err = newClient(config); err != nil {
		return nil, err
	}
	if err := writeKubeConfig(env.KubeConfig, config, s.Namespace); err != nil {
		return nil, err
	}
	s.onStop(func() error { return os.Remove(env.KubeConfig) })
	if err := makeNamespace(ctx, env.Client, s.Namespace); err != nil {
		return nil, err
	}

	if !s.NoManager {
		if env.MetricsURL, err = s.startManager(ctx, env, webhook); err != nil {
			return nil, err
		}
		s.Progress("manager: ready; its log is " + relative(env.ManagerLog))
	}
	if !s.NoShadow {
		if err := s.startShadow(ctx, env); err != nil {
			return nil, err
		}
		s.Progress("shadow service: ready; its log is " + relative(env.ShadowLog))
	}
	if !s.NoShim {
		shim, err := s.startShim(ctx, env)
		if err != nil {
			return nil, err
		}
		s.Progress("legacy HTTP API: " + shim + "; its log is " + relative(env.ShimLog))
	}
	return env, nil
}

// openDatabase sees to the database that is asked for, if any.
func (s *session) openDatabase(ctx context.Context, env *Env) (err error) {
	description := ""
	switch {
	case s.DatabaseURL != "":
		env.DatabaseURL, description, err = s.useDatabase(ctx)
	case s.Database:
		env.DatabaseURL, err = s.startPostgres(ctx)
		description = "PostgreSQL; its log is " + relative(s.path("postgres.log"))
	default:
		return nil
	}
	if err == nil {
		s.Progress("database: " + description)
	}
	return err
}

// environment is that of the operator's programs. The URL of the broker is not an
// argument: it may hold a password, and arguments can be seen by everyone.
func (s *session) environment(env *Env) []string {
	environment := []string{"KUBECONFIG=" + env.KubeConfig, "MQTT_URL=" + env.MQTTURL}
	if s.MemoryLimit != "" {
		environment = append(environment, "GOMEMLIMIT="+s.MemoryLimit)
	}
	return environment
}

func newClient(config *rest.Config) (client.WithWatch, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("building the scheme: %w", err)
		}
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return c, nil
}

func makeNamespace(ctx context.Context, c client.Client, name string) error {
	err := c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("making namespace %q: %w", name, err)
	}
	return nil
}

// relative shortens a path for people.
func relative(path string) string {
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	if short, err := filepath.Rel(here, path); err == nil && filepath.IsLocal(short) {
		return short
	}
	return path
}

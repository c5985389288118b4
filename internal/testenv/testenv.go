// Package testenv runs tests against a real control plane: etcd and
// kube-apiserver as processes, with the project's custom resources installed. It
// is for tests only.
//
// A test package hands its TestMain over and asks for the environment where it
// needs it:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
//	func TestX(t *testing.T) {
//		env := testenv.Start(t)
//		namespace := env.Namespace(t)
//		…
//	}
//
// The control plane is started by the first Start and stopped after the last
// test, so that a run of tests that need none does not wait for one.
package testenv

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"batchtask.dev/operator/api/v1alpha1"
)

const (
	// startTimeout bounds each step of the start of the control plane, and stopTimeout its
	// end. A machine may be busy.
	startTimeout = 5 * time.Minute
	stopTimeout  = 5 * time.Minute
	// starts is how often it is tried to start it. envtest waits no longer than 5 s for the
	// default namespace.
	starts = 3
	// leakTimeout is how long a goroutine may take to end.
	leakTimeout = 30 * time.Second
)

// Env is a running control plane.
type Env struct {
	// Config connects as a cluster administrator, without client-side throttling.
	Config *rest.Config
	// Client reads and writes without a cache. Its scheme is Scheme().
	Client client.WithWatch
	// Webhook says where the API server expects the webhooks, if they were asked
	// for with WithWebhooks: host, port and the directory of the certificate.
	Webhook envtest.WebhookInstallOptions
	// WebhookListener keeps that address, or else another process could take it before the
	// webhooks are served and between two tests. Who serves them listens on a copy of it.
	WebhookListener *net.TCPListener
	// KubeConfig is Config as the content of a kubeconfig file.
	KubeConfig []byte

	environment *envtest.Environment
}

// Option changes what Main prepares.
type Option func(*settings)

type settings struct {
	webhooks bool
	leaks    []goleak.Option
}

// WithWebhooks installs the webhook configurations of config/webhook. The test
// serves the webhooks at Env.Webhook.
func WithWebhooks() Option {
	return func(s *settings) { s.webhooks = true }
}

// WithLeakOptions adds to how goroutines that are left over are looked for.
func WithLeakOptions(options ...goleak.Option) Option {
	return func(s *settings) { s.leaks = append(s.leaks, options...) }
}

// shared is the one environment of a test binary.
var shared struct {
	mu       sync.Mutex
	prepared bool
	settings settings
	env      *Env
	err      error
}

// Main runs the tests of a package, stops the control plane if one was started,
// fails when goroutines are left over, and exits. Logs are shown with -v.
func Main(m *testing.M, options ...Option) {
	shared.mu.Lock()
	for _, option := range options {
		option(&shared.settings)
	}
	shared.prepared = true
	shared.mu.Unlock()

	flag.Parse()
	if testing.Verbose() {
		log.SetLogger(klog.Background())
	} else {
		log.SetLogger(logr.Discard())
	}

	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping the control plane:", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := findLeaks(shared.settings.leaks); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left over:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// findLeaks waits for goroutines that are about to end, longer than goleak does by
// itself, which is less than half a second.
func findLeaks(options []goleak.Option) error {
	deadline := time.Now().Add(leakTimeout)
	for {
		if err := goleak.Find(options...); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// Start returns the control plane of this test binary, and starts it when this is
// the first call. It ends the test when that fails.
func Start(tb testing.TB) *Env {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.prepared {
		tb.Fatal("testenv.Start without testenv.Main: the control plane would never be stopped")
	}
	if shared.env == nil && shared.err == nil {
		shared.env, shared.err = start(shared.settings)
	}
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return shared.env
}

func start(s settings) (*Env, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	binaries, err := assets(root, os.Getenv("KUBEBUILDER_ASSETS"))
	if err != nil {
		return nil, err
	}
	var listener *net.TCPListener
	if s.webhooks {
		if listener, err = net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			return nil, fmt.Errorf("looking for an address of the webhooks: %w", err)
		}
	}
	var environment *envtest.Environment
	var config *rest.Config
	for range starts {
		environment = newEnvironment(root, binaries, listener)
		if config, err = environment.Start(); err == nil {
			break
		}
		err = errors.Join(fmt.Errorf("starting the control plane of %s: %w", binaries, err), environment.Stop())
	}
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	c, err := client.NewWithWatch(config, client.Options{Scheme: Scheme()})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a client: %w", err), environment.Stop())
	}
	return &Env{
		Config:          config,
		Client:          c,
		Webhook:         environment.WebhookInstallOptions,
		WebhookListener: listener,
		KubeConfig:      environment.KubeConfig,
		environment:     environment,
	}, nil
}

// newEnvironment is a control plane with webhooks at that address; with none for nil.
func newEnvironment(root, binaries string, webhooks *net.TCPListener) *envtest.Environment {
	environment := &envtest.Environment{
		Scheme:                   Scheme(),
		BinaryAssetsDirectory:    binaries,
		CRDDirectoryPaths:        []string{filepath.Join(root, "config", "crd", "bases")},
		CRDInstallOptions:        envtest.CRDInstallOptions{MaxTime: startTimeout},
		ErrorIfCRDPathMissing:    true,
		WebhookInstallOptions:    envtest.WebhookInstallOptions{MaxTime: startTimeout},
		ControlPlaneStartTimeout: startTimeout,
		ControlPlaneStopTimeout:  stopTimeout,
	}
	if webhooks != nil {
		address := webhooks.Addr().(*net.TCPAddr) //nolint:forcetypeassert // a TCPListener has no other
		environment.WebhookInstallOptions.Paths = []string{filepath.Join(root, "config", "webhook")}
		environment.WebhookInstallOptions.LocalServingHost = address.IP.String()
		environment.WebhookInstallOptions.LocalServingPort = address.Port
	}
	return environment
}

func stop() error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.env == nil {
		return nil
	}
	// The idle connections of the clients, which share the transport of the
	// configuration, would count as left over.
	defer closeIdle(shared.env.Config)
	return shared.env.environment.Stop()
}

func closeIdle(config *rest.Config) {
	if c, err := rest.HTTPClientFor(config); err == nil {
		c.CloseIdleConnections()
	}
}

// Namespace makes a namespace and returns its name. It is not deleted: no
// controller runs here that would empty it, and the control plane goes away.
func (e *Env) Namespace(tb testing.TB) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	if err := e.Client.Create(ctx, namespace); err != nil {
		tb.Fatalf("making a namespace: %v", err)
	}
	return namespace.Name
}

// Scheme returns a new scheme with the types of Kubernetes and of this project.
func Scheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	return scheme
}

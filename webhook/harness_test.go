package webhook_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	webhookserver "sigs.k8s.io/controller-runtime/pkg/webhook"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/quota"
	"batchtask.dev/operator/internal/schedule"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
	"batchtask.dev/operator/webhook"
)

func TestMain(m *testing.M) {
	logf.SetLogger(logr.Discard())
	testenv.Main(m, testenv.WithWebhooks())
}

// longGrace is how long a slot is kept here whose task does not appear: longer than
// a create may take on a busy machine. A task that comes later than that has lost
// its slot and, if no other is free, fails at the gate.
const longGrace = time.Minute

// system is two replicas of the webhooks, each with a manager and a ledger of its
// own, and the reconcilers on one of them, the leader.
type system struct {
	env      *testenv.Env
	executor *testobj.Executor
	warnings *warnings
	client   client.WithWatch // collects warnings

	served [2]atomic.Int64 // calls by replica
}

// run starts a system that ends with the test.
func run(t *testing.T) *system {
	t.Helper()
	return runWithGrace(t, longGrace)
}

func runWithGrace(t *testing.T, grace time.Duration) *system {
	t.Helper()
	env := testenv.Start(t)
	wake := &controllers.Wakeups{}
	s := &system{env: env, executor: &testobj.Executor{Notify: wake.Wake}, warnings: &warnings{}}

	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	var backends [2]*httputil.ReverseProxy
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(transport.CloseIdleConnections)
	for i := range backends {
		port := freePort(t)
		mgr := newManager(t, env, port)
		store, err := kube.New(ctx, mgr.GetCache(), env.Client)
		if err != nil {
			t.Fatal(err)
		}
		ledger := quota.NewLedger(env.Client, env.Client, clock.RealClock{})
		admission := &webhook.BatchTask{
			Live: mgr.GetAPIReader(), Products: product.Finder{Reader: mgr.GetAPIReader()}, Quota: ledger,
			Matches: matches{store}, Clock: clock.RealClock{}, Skew: schedule.DefaultSkew,
		}
		if err := admission.SetupWithManager(mgr); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := controllers.Setup(ctx, mgr, controllers.Parts{
				Ledger: ledger, Store: store, Executor: s.executor, Wake: wake, Clock: clock.RealClock{}, Grace: grace,
				Metrics: controllers.NewMetrics(prometheus.NewRegistry(), mgr.GetClient()),
			}); err != nil {
				t.Fatal(err)
			}
		}
		running.Go(func() {
			if err := mgr.Start(ctx); err != nil {
				t.Errorf("running replica %d: %v", i, err)
			}
		})
		waitFor(t, "the webhooks to be served", func() (bool, any) {
			err := mgr.GetWebhookServer().StartedChecker()(nil)
			return err == nil, err
		})
		backends[i] = httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", port)})
		backends[i].Transport = transport
	}
	var calls atomic.Int64
	front := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		turn := calls.Add(1) % 2
		s.served[turn].Add(1)
		backends[turn].ServeHTTP(w, r)
	})}
	s.serve(t, front)

	s.patience(t)
	config := rest.CopyConfig(env.Config)
	config.WarningHandlerWithContext = s.warnings
	var err error
	if s.client, err = client.NewWithWatch(config, client.Options{Scheme: testenv.Scheme()}); err != nil {
		t.Fatal(err)
	}
	return s
}

// patience lets the API server wait longer for the webhooks than in production:
// a busy machine that tests with the race detector may be slow.
func (s *system) patience(t *testing.T) {
	t.Helper()
	patch := client.RawPatch(types.JSONPatchType, []byte(`[{"op":"replace","path":"/webhooks/0/timeoutSeconds","value":30}]`))
	for _, configuration := range []client.Object{
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "batchtask-validating"}},
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "batchtask-mutating"}},
	} {
		if err := s.env.Client.Patch(t.Context(), configuration, patch); err != nil {
			t.Fatal(err)
		}
	}
}

// serve answers the API server's calls, at the address that it has been given.
func (s *system) serve(t *testing.T, server *http.Server) {
	t.Helper()
	address := net.JoinHostPort(s.env.Webhook.LocalServingHost, fmt.Sprint(s.env.Webhook.LocalServingPort))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	directory := s.env.Webhook.LocalServingCertDir
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_ = server.ServeTLS(listener, filepath.Join(directory, "tls.crt"), filepath.Join(directory, "tls.key"))
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-stopped
	})
}

func newManager(t *testing.T, env *testenv.Env, port int) ctrl.Manager {
	t.Helper()
	mgr, err := ctrl.NewManager(env.Config, ctrl.Options{
		Scheme: testenv.Scheme(), Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
		WebhookServer: webhookserver.NewServer(webhookserver.Options{
			Host: "127.0.0.1", Port: port, CertDir: env.Webhook.LocalServingCertDir,
		}),
	})
	if err != nil {
		t.Fatalf("making a manager: %v", err)
	}
	return mgr
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// matches counts as the manager does.
type matches struct{ store fleet.Store }

func (m matches) CountMatches(ctx context.Context, task *v1alpha1.BatchTask) (int64, error) {
	if err := m.store.Sync(ctx, task.Namespace); err != nil {
		return 0, err
	}
	return m.store.Count(ctx, fleet.Query{
		Product: fleet.Product{Namespace: task.Namespace, ProductID: task.Spec.ProductID},
		Filter:  mustCompile(task.Spec.DeviceNameFilter),
	})
}

// warnings collects the warnings of the API server.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

// HandleWarningHeaderWithContext implements rest.WarningHandlerWithContext.
func (w *warnings) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	texts := w.texts
	w.texts = nil
	return texts
}

// namespace makes a namespace with a product, and returns the product's ID.
func (s *system) namespace(t *testing.T) (namespace, productID string) {
	t.Helper()
	namespace = s.env.Namespace(t)
	productID = uniqueID(namespace)
	p := testobj.Product("product").In(namespace).ID(productID).Topics("event").Obj()
	if err := s.client.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the product to be Ready", func() (bool, any) {
		err := s.client.Get(t.Context(), client.ObjectKeyFromObject(p), p)
		return err == nil && product.Ready(p), err
	})
	return namespace, productID
}

// nextSecond waits until a product that is made now is younger than that of the
// namespace: ages are compared in whole seconds.
func (s *system) nextSecond(t *testing.T, namespace string) {
	t.Helper()
	p := &v1alpha1.Product{}
	if err := s.client.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: "product"}, p); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the next second", func() (bool, any) { return time.Now().Unix() > p.CreationTimestamp.Unix(), nil })
}

func uniqueID(namespace string) string {
	id := []rune{'P'}
	for _, r := range namespace {
		if r != '-' {
			id = append(id, r)
		}
	}
	return string(id)
}

// slots returns the names of the tasks that hold a slot.
func (s *system) slots(t *testing.T, namespace string) []string {
	t.Helper()
	ledger := &v1alpha1.TaskQuota{}
	err := s.client.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: v1alpha1.TaskQuotaName}, ledger)
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, slot := range ledger.Status.Slots {
		names = append(names, slot.Name)
	}
	slices.Sort(names)
	return names
}

// active returns the names of the tasks that wait or run.
func (s *system) active(t *testing.T, namespace string) []string {
	t.Helper()
	var list v1alpha1.BatchTaskList
	if err := s.client.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for i := range list.Items {
		if phase := list.Items[i].Status.Phase; phase != "" && !phase.Finished() {
			names = append(names, list.Items[i].Name)
		}
	}
	slices.Sort(names)
	return names
}

func waitFor(t *testing.T, what string, condition func() (done bool, seen any)) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, seen := condition()
		if done {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain for %s; last seen: %+v", what, seen)
		}
	}
}

// neverMoreThan watches a kind and returns a check that fails when, at some
// revision until then, more was counted than most.
func neverMoreThan[T client.Object](t *testing.T, s *system, most int, list client.ObjectList, namespace string, count func(all map[string]T) int) (check func()) {
	t.Helper()
	events, err := s.client.Watch(context.Background(), list, client.InNamespace(namespace))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]T{}
	done := make(chan struct{})
	greatest, revisions := 0, 0
	go func() {
		defer close(done)
		for event := range events.ResultChan() {
			object, ok := event.Object.(T)
			if !ok || event.Type == watch.Bookmark {
				continue
			}
			if all[object.GetName()] = object; event.Type == watch.Deleted {
				delete(all, object.GetName())
			}
			revisions++
			greatest = max(greatest, count(all))
		}
	}()
	stop := sync.OnceFunc(func() {
		events.Stop()
		<-done
	})
	t.Cleanup(stop)
	return func() {
		t.Helper()
		stop()
		if greatest > most || greatest == 0 {
			t.Errorf("over %d revisions of %T, there were up to %d at once, want at most %d and some", revisions, list, greatest, most)
		}
	}
}

func countSlots(all map[string]*v1alpha1.TaskQuota) int {
	n := 0
	for _, ledger := range all {
		n += len(ledger.Status.Slots)
	}
	return n
}

func countActive(all map[string]*v1alpha1.BatchTask) int {
	n := 0
	for _, task := range all {
		if task.Status.Phase != "" && !task.Status.Phase.Finished() {
			n++
		}
	}
	return n
}

// certificate returns what a caller must trust to call the server.
func certificate(server *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

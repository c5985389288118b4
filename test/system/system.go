// Package system runs the admission webhooks and the controllers in the process of
// a test, against a real control plane and with an executor that the test drives.
// It is for tests only: a package that uses it has
//
//	func TestMain(m *testing.M) { testenv.Main(m, testenv.WithWebhooks()) }
package system

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	webhookserver "sigs.k8s.io/controller-runtime/pkg/webhook"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/lease"
	"batchtask.dev/operator/internal/namefilter"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/quota"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
	"batchtask.dev/operator/webhook"
)

// LongGrace is how long a slot is kept here whose task does not appear: longer than
// a create may take on a busy machine. A task that comes later than that has lost
// its slot and, if no other is free, fails at the gate.
const LongGrace = time.Minute

const (
	// longSkew is how far in the past a schedule may lie here, and longPatience how long a
	// new product may take to become Ready: longer than a busy machine takes for that.
	longSkew     = 30 * time.Second
	longPatience = 20 * time.Second
	// webhookTimeout is how long the API server waits for a webhook: longer than in
	// production, for the same reason.
	webhookTimeout = 30 * time.Second
)

// System is two replicas of the webhooks, each with a manager and a ledger of its
// own, and the reconcilers on one of them, the leader.
type System struct {
	Env      *testenv.Env
	Executor *testobj.Executor
	Warnings *Warnings
	Client   client.WithWatch // collects warnings

	Served [2]atomic.Int64 // calls by replica: half of those to each path
}

// Run starts a system that ends with the test.
func Run(t *testing.T) *System {
	t.Helper()
	return RunWithGrace(t, LongGrace, clock.RealClock{})
}

// RunWithGrace is [Run] with another time that a slot is kept whose task does not
// appear, by that clock.
func RunWithGrace(t *testing.T, grace time.Duration, slots clock.PassiveClock) *System {
	t.Helper()
	env := testenv.Start(t)
	wake := &controllers.Wakeups{}
	s := &System{Env: env, Executor: &testobj.Executor{Notify: wake.Wake}, Warnings: &Warnings{}}

	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	var replicas [2]*http.ServeMux
	for i := range replicas {
		mgr := newManager(t, env)
		store, err := kube.New(ctx, mgr.GetCache(), env.Client)
		if err != nil {
			t.Fatal(err)
		}
		ledger := quota.NewLedger(env.Client, env.Client, slots)
		admission := &webhook.BatchTask{
			Live: mgr.GetAPIReader(), Products: product.Finder{Reader: mgr.GetAPIReader(), Cache: mgr.GetClient()}, Quota: ledger,
			Matches: matches{store}, Clock: clock.RealClock{}, Skew: longSkew, Patience: longPatience, Advice: longPatience,
		}
		admission.SetupWithManager(mgr)
		if i == 0 {
			err = controllers.Setup(ctx, mgr, controllers.Parts{
				Ledger: ledger, Store: store, Executor: s.Executor, Wake: wake, Clock: clock.RealClock{}, Grace: grace,
				Metrics: controllers.NewMetrics(prometheus.NewRegistry()),
				Lease:   lease.Sole("system"), Stop: func(err error) { t.Errorf("the system is to end: %v", err) },
			})
		} else {
			err = errors.Join(product.Index(ctx, mgr.GetFieldIndexer()), controllers.WatchLedgers(ctx, mgr, ledger))
		}
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			if err := mgr.Start(ctx); err != nil {
				t.Errorf("running replica %d: %v", i, err)
			}
		})
		replicas[i] = mgr.GetWebhookServer().WebhookMux()
	}
	// The replicas take turns for each path: if they did for all calls, one might set the
	// defaults of all tasks and the other admit them.
	var turns sync.Map    // by path
	var patience sync.Map // by path, as the API server says with each call
	front := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls, _ := turns.LoadOrStore(r.URL.Path, new(atomic.Int64))
		turn := calls.(*atomic.Int64).Add(1) % 2
		s.Served[turn].Add(1)
		patience.Store(r.URL.Path, r.URL.Query().Get("timeout"))
		replicas[turn].ServeHTTP(w, r)
	})}
	s.serve(t, front)

	s.patience(t, &patience)
	for i := range s.Served {
		s.Served[i].Store(0)
	}
	config := rest.CopyConfig(env.Config)
	config.WarningHandlerWithContext = s.Warnings
	var err error
	if s.Client, err = client.NewWithWatch(config, client.Options{Scheme: testenv.Scheme()}); err != nil {
		t.Fatal(err)
	}
	return s
}

// patience lets the API server wait longer for the webhooks, and returns when it calls
// each of them and does so: it takes a moment to know of webhooks, and until then it
// would store tasks that nobody has admitted.
func (s *System) patience(t *testing.T, seen *sync.Map) {
	t.Helper()
	patch := client.RawPatch(types.JSONPatchType, fmt.Appendf(nil, `[{"op":"replace","path":"/webhooks/0/timeoutSeconds","value":%d}]`, int(webhookTimeout.Seconds())))
	for _, configuration := range []client.Object{
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "batchtask-validating"}},
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "batchtask-mutating"}},
	} {
		if err := s.Env.Client.Patch(t.Context(), configuration, patch); err != nil {
			t.Fatal(err)
		}
	}
	WaitFor(t, "the API server to call the webhooks", func() (bool, any) {
		probe := testobj.BatchTask("probe").In(metav1.NamespaceDefault).Product("NONE").Publish("event", "x").Obj()
		err := s.Env.Client.Create(t.Context(), probe, client.DryRunAll)
		known := 0
		seen.Range(func(_, timeout any) bool {
			if timeout == webhookTimeout.String() {
				known++
			}
			return true
		})
		return known == 2, err
	})
}

// serve answers the API server's calls, at the address that it has been given.
func (s *System) serve(t *testing.T, server *http.Server) {
	t.Helper()
	file, err := s.Env.WebhookListener.File() // a copy, for the server closes what it listens on
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	directory := s.Env.Webhook.LocalServingCertDir
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

// replica holds the webhooks of a manager. It needs no port of its own, which might be
// taken: the system serves them.
type replica struct{ webhookserver.Server }

// Start implements [webhookserver.Server].
func (replica) Start(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func newManager(t *testing.T, env *testenv.Env) ctrl.Manager {
	t.Helper()
	mgr, err := ctrl.NewManager(env.Config, ctrl.Options{
		Scheme: testenv.Scheme(), Metrics: metricsserver.Options{BindAddress: "0"},
		Controller:    config.Controller{SkipNameValidation: ptr.To(true)},
		Cache:         cache.Options{ByObject: map[client.Object]cache.ByObject{&v1alpha1.BatchTask{}: {Transform: controllers.StripFinished}}},
		WebhookServer: replica{webhookserver.NewServer(webhookserver.Options{})},
	})
	if err != nil {
		t.Fatalf("making a manager: %v", err)
	}
	return mgr
}

// matches counts as the manager does, but waits for its cache as long as its caller does.
type matches struct{ store fleet.Store }

func (m matches) CountMatches(ctx context.Context, task *v1alpha1.BatchTask) (int64, error) {
	for {
		err := m.store.Sync(ctx, task.Namespace)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return 0, err
		}
	}
	return m.store.Count(ctx, fleet.Query{
		Product: fleet.Product{Namespace: task.Namespace, ProductID: task.Spec.ProductID},
		Filter:  namefilter.MustParse(task.Spec.DeviceNameFilter),
	})
}

// Warnings collects the warnings of the API server.
type Warnings struct {
	mu    sync.Mutex
	texts []string
}

// HandleWarningHeaderWithContext implements rest.WarningHandlerWithContext.
func (w *Warnings) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

// Take returns the warnings since it was last called.
func (w *Warnings) Take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	texts := w.texts
	w.texts = nil
	return texts
}

// Namespace makes a namespace with a product, and returns the product's ID.
func (s *System) Namespace(t *testing.T) (namespace, productID string) {
	t.Helper()
	namespace = s.Env.Namespace(t)
	productID = UniqueID(namespace)
	p := testobj.Product("product").In(namespace).ID(productID).Topics("event").Obj()
	if err := s.Client.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	WaitFor(t, "the product to be Ready", func() (bool, any) {
		err := s.Client.Get(t.Context(), client.ObjectKeyFromObject(p), p)
		return err == nil && product.Ready(p), err
	})
	return namespace, productID
}

// NextSecond waits until a product that is made now is younger than that of the
// namespace: ages are compared in whole seconds.
func (s *System) NextSecond(t *testing.T, namespace string) {
	t.Helper()
	p := &v1alpha1.Product{}
	if err := s.Client.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: "product"}, p); err != nil {
		t.Fatal(err)
	}
	WaitFor(t, "the next second", func() (bool, any) { return time.Now().Unix() > p.CreationTimestamp.Unix(), nil })
}

// UniqueID returns a product ID that no other namespace has.
func UniqueID(namespace string) string {
	id := []rune{'P'}
	for _, r := range namespace {
		if r != '-' {
			id = append(id, r)
		}
	}
	return string(id)
}

// Slots returns the names of the tasks that hold a slot.
func (s *System) Slots(t *testing.T, namespace string) []string {
	t.Helper()
	ledger := &v1alpha1.TaskQuota{}
	err := s.Client.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: v1alpha1.TaskQuotaName}, ledger)
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

// Active returns the names of the tasks that wait or run.
func (s *System) Active(t *testing.T, namespace string) []string {
	t.Helper()
	var list v1alpha1.BatchTaskList
	if err := s.Client.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
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

// WaitFor is [WaitUpTo] two minutes: what is waited for comes at once, but a machine may be
// busy.
func WaitFor(t *testing.T, what string, condition func() (done bool, seen any)) {
	t.Helper()
	WaitUpTo(t, 2*time.Minute, what, condition)
}

// WaitUpTo waits until a condition holds, and fails with what it saw last.
func WaitUpTo(t *testing.T, most time.Duration, what string, condition func() (done bool, seen any)) {
	t.Helper()
	deadline := time.NewTimer(most)
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

// NeverMoreThan watches a kind and returns a check that fails when, at some
// revision until then, more was counted than most.
func NeverMoreThan[T client.Object](t *testing.T, s *System, most int, list client.ObjectList, namespace string, count func(all map[string]T) int) (check func()) {
	t.Helper()
	events, err := s.Client.Watch(context.Background(), list, client.InNamespace(namespace))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]T{}
	done := make(chan struct{})
	greatest, revisions := 0, 0
	var latest atomic.Uint64 // the last revision that the watch has told
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
			latest.Store(max(latest.Load(), Revision(object)))
		}
	}()
	stop := sync.OnceFunc(func() {
		events.Stop()
		<-done
	})
	t.Cleanup(stop)
	return func() {
		t.Helper()
		var last uint64
		now := list.DeepCopyObject().(client.ObjectList)
		if err := s.Client.List(t.Context(), now, client.InNamespace(namespace)); err != nil {
			t.Fatal(err)
		}
		_ = meta.EachListItem(now, func(object runtime.Object) error {
			last = max(last, Revision(object.(T)))
			return nil
		})
		WaitUpTo(t, time.Minute, "the watch to tell what has happened", func() (bool, any) { return latest.Load() >= last, latest.Load() })
		stop()
		if greatest > most || greatest == 0 {
			t.Errorf("over %d revisions of %T, there were up to %d at once, want at most %d and some", revisions, list, greatest, most)
		}
	}
}

// Revision is the number of the write that made the object what it is.
func Revision(object client.Object) uint64 {
	n, _ := strconv.ParseUint(object.GetResourceVersion(), 10, 64)
	return n
}

// CountSlots counts the slots of all ledgers.
func CountSlots(all map[string]*v1alpha1.TaskQuota) int {
	n := 0
	for _, ledger := range all {
		n += len(ledger.Status.Slots)
	}
	return n
}

// CountActive counts the tasks that wait or run.
func CountActive(all map[string]*v1alpha1.BatchTask) int {
	n := 0
	for _, task := range all {
		if task.Status.Phase != "" && !task.Status.Phase.Finished() {
			n++
		}
	}
	return n
}

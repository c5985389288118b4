package router_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/fleet/router"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// database is one that was opened.
type database struct {
	*fleettest.Memory
	url    string
	closed chan struct{}
	// fault is the error of each call.
	fault func() error
	// silent, unless nil, is how long a call takes, and probed whether the server answers.
	silent chan struct{}
	probed error
}

func (d *database) Close() { close(d.closed) }

func (d *database) ResultsOf(context.Context, fleet.Product) (fleet.Results, error) {
	return where{url: d.url}, nil
}

// errAway is that of a server that is not there.
var errAway = errors.New("secret host of the server: connection refused")

func (d *database) Fault(err error) (fleet.Fault, bool) {
	return fleet.Fault{Reason: "it is away", Away: errors.Is(err, errAway)}, err != nil && !errors.Is(err, context.Canceled)
}

func (d *database) Probe(context.Context) error { return d.probed }

func (d *database) Guarded(guard fleet.Guard) fleet.ResultsKeeper { return &guarded{d, guard} }

// guarded is a database behind a guard.
type guarded struct {
	*database
	guard fleet.Guard
}

func (g *guarded) call(ctx context.Context) error {
	inside, leave, err := g.guard.Enter(ctx)
	if err != nil {
		return err
	}
	if g.silent != nil {
		select {
		case <-g.silent:
		case <-inside.Done():
			return leave(context.Cause(inside))
		}
	}
	if g.fault != nil {
		return leave(g.fault())
	}
	return leave(nil)
}

func (g *guarded) Sync(ctx context.Context, _ string) error { return g.call(ctx) }

func (g *guarded) ResultsOf(ctx context.Context, p fleet.Product) (fleet.Results, error) {
	return g.database.ResultsOf(ctx, p)
}

// where is results that say which database they are in.
type where struct {
	fleet.Results
	url string
}

func (w where) Delete(context.Context, fleet.KeptResults) error {
	return errors.New("results of " + w.url)
}

// site is Databases that are opened in memory, over Secrets at a real API server.
type site struct {
	*router.Databases
	t         *testing.T
	env       *testenv.Env
	namespace string
	clock     *testingclock.FakePassiveClock

	mu     sync.Mutex
	opened []*database
	fault  error         // of opening
	hold   chan struct{} // what opening waits for, unless nil

	opening atomic.Int64 // how often it has begun
}

func newSite(t *testing.T, live client.Reader) *site {
	t.Helper()
	env := testenv.Start(t)
	s := &site{t: t, env: env, namespace: env.Namespace(t), clock: testingclock.NewFakePassiveClock(time.Unix(1_700_000_000, 0))}
	if live == nil {
		live = env.Client
	}
	s.Databases = router.NewDatabases(live, s.clock, logr.Discard(), router.Kind{
		Identity: func(url string) (string, error) {
			if strings.HasPrefix(url, "bad") {
				return "", errors.New("a secret of the URL")
			}
			return url, nil
		},
		Reason: func(error) string { return "it is not to be had" },
		Open: func(ctx context.Context, url string) (router.Database, error) {
			s.opening.Add(1)
			s.mu.Lock()
			hold := s.hold
			s.mu.Unlock()
			if hold != nil && strings.HasPrefix(url, "silent") {
				select {
				case <-hold:
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				}
			}
			d := &database{Memory: fleettest.NewMemory(), url: url, closed: make(chan struct{})}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.fault != nil {
				return nil, s.fault
			}
			s.opened = append(s.opened, d)
			return d, nil
		},
	}, router.Limits{PerNamespace: 3})
	t.Cleanup(s.Close)
	return s
}

func (s *site) put(name, url string) *corev1.Secret {
	s.t.Helper()
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name},
		StringData: map[string]string{v1alpha1.DatabaseURLKey: url},
	}
	err := s.env.Client.Create(s.t.Context(), secret)
	if client.IgnoreAlreadyExists(err) == nil && err != nil {
		err = s.env.Client.Update(s.t.Context(), secret)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return secret
}

// store returns the URL of the open database, or the error.
func (s *site) store(name string) (url string, err error) {
	store, err := s.Store(s.t.Context(), client.ObjectKey{Namespace: s.namespace, Name: name})
	if err != nil {
		return "", err
	}
	return store.(*guarded).url, nil
}

// want waits until a Secret leads to a database, or to a fault: what is new is looked at
// while what was known is told.
func (s *site) want(when, name, url, fault string) {
	s.t.Helper()
	eventually(s.t, when, func() (bool, any) {
		got, err := s.store(name)
		return got == url && (err == nil) == (fault == "") && (err == nil || strings.Contains(err.Error(), fault)), fmt.Sprint(got, err)
	})
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() (bool, any)) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		is, instead := so()
		if is {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%s: %v", what, instead)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *site) fail(fault error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

func (s *site) pass(d time.Duration) { s.clock.SetTime(s.clock.Now().Add(d)) }

func (s *site) wantClosed(what string, i int) {
	s.t.Helper()
	select {
	case <-s.opened[i].closed:
	case <-time.After(time.Minute):
		s.t.Errorf("%s is not closed", what)
	}
}

func TestDatabases(t *testing.T) {
	s := newSite(t, nil)
	s.want("no Secret", "db", "", `read Secret "db"`)
	secret := s.put("db", "one")
	s.want("at once after that", "db", "", `read Secret "db"`)
	s.pass(3 * time.Second)
	s.want("a moment later", "db", "one", "")
	s.want("again", "db", "one", "")
	if len(s.opened) != 1 {
		t.Fatalf("%d databases were opened, want 1", len(s.opened))
	}

	s.put("db", "two")
	s.want("changed a moment ago", "db", "one", "")
	s.pass(31 * time.Second)
	s.want("changed", "db", "two", "")
	s.wantClosed("the database before", 0)

	s.fail(errors.New("the server at a secret address does not answer"))
	s.put("db", "three")
	s.pass(31 * time.Second)
	s.want("cannot be opened", "db", "", `open the database of Secret "db": it is not to be had`)
	s.wantClosed("the second database", 1)
	s.fail(nil)
	s.pass(3 * time.Second)
	s.want("back", "db", "three", "")

	if err := s.env.Client.Delete(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	s.pass(31 * time.Second)
	s.want("gone", "db", "", "not found")
	s.wantClosed("the database of the Secret that is gone", 2)

	other := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: "other"}, StringData: map[string]string{"URL": "x"}}
	if err := s.env.Client.Create(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	s.want("another key", "other", "", `read Secret "other": it has no key DATABASE_URL`)
}

func TestIdleDatabaseIsClosed(t *testing.T) {
	s := newSite(t, nil)
	s.put("a", "a")
	s.put("b", "b")
	s.want("a", "a", "a", "")
	s.want("b", "b", "b", "")
	s.pass(9 * time.Minute)
	s.want("b", "b", "b", "")
	s.pass(2 * time.Minute)
	s.want("b", "b", "b", "")
	s.wantClosed("the one that nobody asks for", 0)
	s.want("a", "a", "a", "") // opened anew
	s.Close()
	s.wantClosed("the one in use", 1)
}

// The API server out of reach leaves what is open alone.
func TestSecretOutOfReach(t *testing.T) {
	env := testenv.Start(t)
	var away error
	var asked atomic.Int64
	live := interceptor.NewClient(env.Client, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			defer asked.Add(1)
			if away != nil {
				return away
			}
			return c.Get(ctx, key, obj, opts...)
		},
	})
	s := newSite(t, live)
	s.put("db", "one")
	s.want("before", "db", "one", "")
	away = errors.New("connection refused")
	s.pass(31 * time.Second)
	before := asked.Load()
	eventually(t, "the Secret to be read again", func() (bool, any) {
		s.want("away", "db", "one", "")
		return asked.Load() > before, asked.Load()
	})
	s.want("still away", "db", "one", "")
}

// Who may not read the Secret is told what is missing.
func TestForbidden(t *testing.T) {
	env := testenv.Start(t)
	config := rest.CopyConfig(env.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "nobody"}
	nobody, err := client.New(config, client.Options{Scheme: testenv.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, nobody)
	s.put("db", "one")
	s.want("forbidden", "db", "", "bind the ClusterRole batchtask-database-reader in the namespace")
}

// Each product goes to the store that it names, whatever products others have.
func TestRouter(t *testing.T) {
	s := newSite(t, nil)
	s.put("db", "one")
	inKube := fleet.Product{Namespace: s.namespace, ProductID: "KUBE" + strings.ToUpper(strings.TrimPrefix(s.namespace, "test-"))}
	inDatabase := fleet.Product{Namespace: s.namespace, ProductID: "DATA" + strings.ToUpper(strings.TrimPrefix(s.namespace, "test-"))}
	data := testobj.Product("data").In(s.namespace).ID(inDatabase.ProductID).Obj()
	data.Spec.Fleet = v1alpha1.Fleet{
		Type:     v1alpha1.FleetTypePostgres,
		Postgres: &v1alpha1.PostgresFleet{SecretRef: v1alpha1.SecretReference{Name: "db"}},
	}
	for _, p := range []*v1alpha1.Product{data, testobj.Product("kube").In(s.namespace).ID(inKube.ProductID).Obj()} {
		if err := s.env.Client.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	kube := fleettest.NewMemory()
	kube.Create(t, inKube, fleettest.Device{Name: "a"})
	r := &router.Router{Products: s.env.Client, Kubernetes: kube, Databases: s.Databases}
	if _, err := s.store("db"); err != nil {
		t.Fatal(err)
	}
	s.opened[0].Create(t, inDatabase, fleettest.Device{Name: "b"}, fleettest.Device{Name: "c"})

	nowhere := fleet.Product{Namespace: s.namespace, ProductID: "NOWHERE"}
	for p, want := range map[fleet.Product]int64{inKube: 1, inDatabase: 2, nowhere: 0} {
		if got, err := r.Total(t.Context(), p); err != nil || got != want {
			t.Errorf("product %s has %d devices, %v; want %d", p.ProductID, got, err, want)
		}
		if p == nowhere {
			continue
		}
		if got, err := r.Count(t.Context(), fleet.Query{Product: p}); err != nil || got != want {
			t.Errorf("product %s: %d devices match, %v; want %d", p.ProductID, got, err, want)
		}
	}
	// A task must not take a product that is gone, or not seen yet, for one without devices.
	_, countErr := r.Count(t.Context(), fleet.Query{Product: nowhere})
	_, _, scanErr := r.Scan(t.Context(), fleet.Query{Product: nowhere}, 10)
	_, resultsErr := r.ResultsOf(t.Context(), nowhere)
	applyErr := r.ApplyDesired(t.Context(), nowhere, fleet.DesiredUpdate{}, []string{"a"})[0].Err
	for what, err := range map[string]error{"Count": countErr, "Scan": scanErr, "ResultsOf": resultsErr, "ApplyDesired": applyErr} {
		if !errors.Is(err, fleet.ErrNoProduct) {
			t.Errorf("%s of a product that does not exist: error %v, want %v", what, err, fleet.ErrNoProduct)
		}
	}
	if results, err := r.ResultsOf(t.Context(), inKube); results != nil || err != nil {
		t.Errorf("results of objects are kept in %v, %v", results, err)
	}
	results, err := r.ResultsOf(t.Context(), inDatabase)
	if err != nil || results == nil {
		t.Fatalf("results are kept in %v, %v", results, err)
	}
	wantIn := func(want string) {
		t.Helper()
		eventually(t, "results to be kept in "+want, func() (bool, any) {
			err := results.Delete(t.Context(), fleet.KeptResults{TaskUID: "uid"})
			return err != nil && err.Error() == "results of "+want, err
		})
	}
	wantIn("one")
	// A task that runs is not left with a database that was closed, as when a password changes.
	s.put("db", "two")
	s.pass(31 * time.Second)
	wantIn("two")
	// One that has ended when its product is deleted still records what it has.
	if err := s.env.Client.Delete(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	wantIn("two")
	data.ResourceVersion = ""
	if err := s.env.Client.Create(t.Context(), data); err != nil {
		t.Fatal(err)
	}

	// A product whose database is away has no devices, and does not go elsewhere.
	if err := s.env.Client.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: "db"}}); err != nil {
		t.Fatal(err)
	}
	s.pass(31 * time.Second)
	eventually(t, "devices not to be counted when the database is gone", func() (bool, any) {
		_, err := r.Total(t.Context(), inDatabase)
		return err != nil, err
	})
	if got := r.ApplyDesired(t.Context(), inDatabase, fleet.DesiredUpdate{}, []string{"b", "c"}); len(got) != 2 || got[0].Err == nil || got[1].Err == nil {
		t.Errorf("results without a database: %v", got)
	}
}

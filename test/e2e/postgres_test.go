package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// dbSite is a site whose devices are in a database.
type dbSite struct {
	*site
	store *postgres.Store
}

// newDBSite makes a product with n devices in a database.
func newDBSite(t *testing.T, databaseURL string, n int) *dbSite {
	t.Helper()
	env := testenv.Start(t)
	s := &dbSite{site: &site{t: t, client: env.Client, namespace: env.Namespace(t), product: fmt.Sprintf("E2E%d", products.Add(1))}}
	store, err := postgres.Open(t.Context(), postgres.Options{URL: databaseURL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	s.store = store
	if sum, err := store.Import(t.Context(), s.fleet(), rowsOf(names(n))); err != nil || sum.Added != int64(n) {
		t.Fatalf("import of %d devices: %+v, %v", n, sum, err)
	}
	s.putURL(databaseURL)
	mayReadDatabases(t, s.namespace)
	p := testobj.Product("p").In(s.namespace).ID(s.product).Obj()
	p.Spec.Fleet = v1alpha1.Fleet{Type: v1alpha1.FleetTypePostgres, Postgres: &v1alpha1.PostgresFleet{SecretRef: v1alpha1.SecretReference{Name: "db"}}}
	if err := s.client.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *dbSite) fleet() fleet.Product {
	return fleet.Product{Namespace: s.namespace, ProductID: s.product}
}

func (s *dbSite) putURL(url string) {
	s.t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: "db"}, StringData: map[string]string{v1alpha1.DatabaseURLKey: url}}
	err := s.client.Create(s.t.Context(), secret)
	if client.IgnoreAlreadyExists(err) == nil && err != nil {
		err = s.client.Update(s.t.Context(), secret)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// ready waits until tasks may run, or may not, for this reason.
func (s *site) ready(is metav1.ConditionStatus, reason, message string) {
	s.t.Helper()
	eventually(s.t, "the product to have Ready="+string(is), func() (bool, string) {
		p := &v1alpha1.Product{}
		if err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: s.namespace, Name: "p"}, p); err != nil {
			return false, err.Error()
		}
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		return c != nil && c.Status == is && c.Reason == reason && strings.Contains(c.Message, message), fmt.Sprintf("%+v", c)
	})
}

// wantResults checks that each device has succeeded in a task, once.
func (s *dbSite) wantResults(task string, n int) {
	s.t.Helper()
	seen := map[string]bool{}
	err := s.store.Results().List(s.t.Context(), string(s.get(task).UID), false, func(r postgres.Result) error {
		if r.Failed || seen[r.Name] {
			s.t.Errorf("result %+v", r)
		}
		seen[r.Name] = true
		return nil
	})
	if err != nil || len(seen) != n {
		s.t.Errorf("%d devices have a result of task %s, %v; want %d", len(seen), task, err, n)
	}
}

// wantVersions checks that each shadow has been raised so often and wants open.
func (s *dbSite) wantVersions(n int, version int64) {
	s.t.Helper()
	count := 0
	for d, err := range s.store.Export(s.t.Context(), s.fleet()) {
		if err != nil {
			s.t.Fatal(err)
		}
		count++
		if d.Shadow.Version != version || d.Shadow.Desired != `{"state":"open"}` {
			s.t.Fatalf("device %s has version %d and wants %s", d.Name, d.Shadow.Version, d.Shadow.Desired)
		}
	}
	if count != n {
		s.t.Errorf("%d devices, want %d", count, n)
	}
}

// The manager is killed with SIGKILL in a task over 100,000 devices in a database:
// counts and results are exact, and each crash serves no more than a window of devices
// twice, though the status is written only about once a second.
func TestManagerKilledOverADatabase(t *testing.T) {
	const devices, window = 100_000, 1000
	broker := mqtttest.StartMosquitto(t)
	s := newDBSite(t, pgtest.Start(t).Database(t), devices)
	tap := newTap(t, broker.URL())
	tap.letPass(0)
	m := startManager(t, tap.url(), noResend)
	s.ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady, "")
	s.create(s.task("close").Publish("event", "close").Obj())
	moments := []int{5_000, 40_000, 80_000}
	tap.killAt(t, m, moments, window, noResend)
	task := s.finished("close")
	wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: devices, Succeeded: devices})
	wantEvidence(t, tap, devices, window*len(moments))
	s.wantResults("close", devices)
}

// The database is killed and comes back, in mid-task; so is every connection ended,
// now and then. No shadow is raised twice.
func TestDatabaseKilled(t *testing.T) {
	const devices = 20_000
	broker := mqtttest.StartMosquitto(t)
	server := pgtest.Start(t)
	database := server.Database(t)
	s := newDBSite(t, database, devices)
	tap := newTap(t, broker.URL())
	tap.letPass(3000)
	startManager(t, tap.url())
	s.ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady, "")
	s.create(s.task("open").UpdateShadow(`{"state":"open"}`).Obj())
	// Each happens while the task runs, since more acknowledgements may pass then.
	for _, n := range []int{1000, 4000} {
		tap.await(t, n)
		tap.letPass(n + 5000)
		server.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'`)
	}
	tap.await(t, 8000)
	tap.letPass(15000)
	server.Kill()
	s.ready(metav1.ConditionFalse, v1alpha1.ReasonFleetUnavailable, "")
	if task := s.get("open"); task.Status.Phase != v1alpha1.TaskPhaseProcessing {
		t.Fatalf("the task is %s", describe(task))
	}
	tap.letAllPass()
	server.Restart()
	task := s.finished("open")
	wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: devices, Succeeded: devices})
	s.wantVersions(devices, 1)
	s.wantResults("open", devices)
}

// In mid-task the URL of the database changes, as it does with a new password, and then the
// Product is deleted and made again. The task goes on with the one and waits for the other.
func TestSecretAndProductChangeDuringATask(t *testing.T) {
	const devices, window = 60_000, 1000
	broker := mqtttest.StartMosquitto(t)
	database := pgtest.Start(t).Database(t)
	s := newDBSite(t, database, devices)
	tap := newTap(t, broker.URL())
	tap.letPass(3000)
	startManager(t, tap.url(), noResend)
	s.ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady, "")
	s.create(s.task("close").Publish("event", "close").Obj())
	tap.await(t, 3000)

	s.putURL(database + "&application_name=changed")
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	eventually(t, "the manager to use the new URL", func() (bool, string) {
		var n int
		err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'changed'`).Scan(&n)
		return err == nil && n > 0, fmt.Sprintf("%d sessions, %v", n, err)
	})
	tap.letPass(8000)
	tap.await(t, 8000)

	p := &v1alpha1.Product{}
	if err := s.client.Get(t.Context(), client.ObjectKey{Namespace: s.namespace, Name: "p"}, p); err != nil {
		t.Fatal(err)
	}
	tap.letAllPass()
	if err := s.client.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	// It may have been faster, and is Done rightly then.
	eventually(t, "the task to be held up", func() (bool, string) {
		task := s.get("close")
		return task.Status.Phase.Finished() || strings.Contains(describe(task), "Held up"), describe(task)
	})
	again := &v1alpha1.Product{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, Spec: p.Spec}
	if err := s.client.Create(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	task := s.finished("close")
	wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: devices, Succeeded: devices})
	wantEvidence(t, tap, devices, window)
	s.wantResults("close", devices)
}

// What is wrong with the database stands in the Product, without a password, and a
// task waits until it is mended.
func TestDatabaseOutOfOrder(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	server := pgtest.Start(t)
	database := server.Database(t)
	s := newDBSite(t, database, 100)
	startManager(t, broker.URL())
	s.ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady, "")
	s.putURL("postgres://somebody:hunter2@" + server.Address() + "/nowhere?sslmode=disable")
	s.ready(metav1.ConditionFalse, v1alpha1.ReasonFleetUnavailable, `The devices cannot be read: open the database of Secret "db": the database refuses the login`)
	p := &v1alpha1.Product{}
	if err := s.client.Get(t.Context(), client.ObjectKey{Namespace: s.namespace, Name: "p"}, p); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hunter2", "somebody", "nowhere", "127.0.0.1", server.Address()} {
		if text := fmt.Sprint(p.Status.Conditions); strings.Contains(text, secret) {
			t.Errorf("%s is in the status: %s", secret, text)
		}
	}
	s.create(s.task("close").Publish("event", "close").Obj()) // no webhook here refuses it
	eventually(t, "the task to be held up", func() (bool, string) {
		text := describe(s.get("close"))
		return strings.Contains(text, "Held up"), text
	})
	s.putURL(database)
	wantCounts(t, s.finished("close"), v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: 100, Succeeded: 100})
}

package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres"
)

// The hostile tenant's namespaces, one for each thing that it does: so none is held up by a
// limit that another of them has reached.
const (
	nsRename = "hostile-rename"
	nsURL    = "hostile-url"
	nsFilter = "hostile-filter"
	nsSilent = "hostile-silent"
	nsHangUp = "hostile-hangup"
	nsList   = "hostile-list"  // with finished tasks, which are listed
	nsQuiet  = "hostile-quiet" // without any
	nsAway   = "hostile-away"
	nsReview = "hostile-review"

	renameProduct = "HRENAME"
	awayProduct   = "HAWAY"
	filterProduct = "HFILTER"
	reviewProduct = "HREVIEW"

	renameRows = 50
	silentRows = 2_000 // more than the manager's window
	awayRows   = 200
	filterRows = 50

	// actsAtOnce is how many requests of one kind may be under way; more are left out.
	actsAtOnce = 256
	actTime    = 15 * time.Second
)

// act is one kind of request, in its harmless and its hostile form.
type act struct {
	name  string // of the hostile form, for people
	every time.Duration
	do    func(ctx context.Context, n int, hostile bool) error
}

type hostileTenant struct {
	env     *localenv.Env
	of      *hostileCase
	store   *postgres.Store // the tenant's database
	conn    *pgx.Conn
	connMu  sync.Mutex
	url     string // of that database
	away    *gate
	devices paho.Client
	review  *reviewer
	bodies  bodies
	urls    []string // hostile DATABASE_URLs
	made    atomic.Int64
}

func newHostileTenant(ctx context.Context, env *localenv.Env, db *database, c *hostileCase) (*hostileTenant, error) {
	t := &hostileTenant{env: env, of: c, away: newGate(), bodies: newBodies()}
	if _, err := db.conn.Exec(ctx, "CREATE DATABASE hostile"); err != nil {
		return nil, fmt.Errorf("make a database: %w", err)
	}
	u, err := url.Parse(env.DatabaseURL)
	if err != nil {
		return nil, err
	}
	u.Path = "/hostile"
	t.url = u.String()
	if t.store, err = postgres.Open(ctx, postgres.Options{URL: t.url}); err != nil {
		return nil, err
	}
	if t.conn, err = pgx.Connect(ctx, t.url); err != nil {
		return nil, err
	}
	if t.devices, err = connectClient(env.MQTTURL, "bench-hostile"); err != nil {
		return nil, err
	}
	if t.review, err = newReviewer(ctx, env); err != nil {
		return nil, err
	}
	if err := t.makeURLs(ctx); err != nil {
		return nil, err
	}
	for _, namespace := range []string{nsRename, nsURL, nsFilter, nsSilent, nsHangUp, nsList, nsQuiet, nsAway, nsReview} {
		if err := t.makeAccount(ctx, namespace); err != nil {
			return nil, err
		}
	}
	awayURL, err := t.away.start(ctx, t.url)
	if err != nil {
		return nil, err
	}
	for _, p := range []struct {
		namespace, id, url string
		rows               int
	}{
		{nsRename, renameProduct, t.url, renameRows},
		{nsSilent, silentProduct, t.url, silentRows},
		{nsHangUp, hangUpProduct, t.url, 1},
		{nsAway, awayProduct, awayURL, awayRows},
		{nsFilter, filterProduct, t.url, filterRows},
		{nsReview, reviewProduct, t.url, 1},
		{nsList, "HLIST", t.url, 1},
	} {
		if _, err := t.store.Import(ctx, fleet.Product{Namespace: p.namespace, ProductID: p.id}, func(yield func(postgres.Device, error) bool) {
			for _, name := range deviceNames(p.rows) {
				if !yield(postgres.Device{Name: name}, nil) {
					return
				}
			}
		}); err != nil {
			return nil, fmt.Errorf("import the devices of %s: %w", p.id, err)
		}
		if err := makeTenantDatabase(ctx, env, p.namespace, p.id, p.url); err != nil {
			return nil, err
		}
		if err := awaitProduct(ctx, env, namedProduct(p.namespace, p.id)); err != nil {
			return nil, err
		}
		if err := raiseLimit(ctx, env, p.namespace, 1000); err != nil {
			return nil, err
		}
	}
	return t, t.makeFinished(ctx)
}

func (t *hostileTenant) close(ctx context.Context) {
	t.away.release()
	t.devices.Disconnect(100)
	_ = t.conn.Close(context.WithoutCancel(ctx))
	t.store.Close()
}

// makeAccount makes a namespace with credentials for the HTTP front.
func (t *hostileTenant) makeAccount(ctx context.Context, namespace string) error {
	for _, object := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "caller", Labels: map[string]string{v1alpha1.LabelCredentials: "true"}},
			StringData: map[string]string{v1alpha1.CredentialsSecretID: namespace, v1alpha1.CredentialsSecretKey: "key"},
		},
	} {
		if err := t.env.Client.Create(ctx, object); err != nil {
			return fmt.Errorf("make account %s: %w", namespace, err)
		}
	}
	return nil
}

// makeFinished makes finished tasks of 16 KiB: over no device, so they end at once.
func (t *hostileTenant) makeFinished(ctx context.Context) error {
	progress(fmt.Sprintf("making %d finished tasks of %d KiB", t.of.finished, manyPayload>>10))
	text := strings.Repeat("x", manyPayload)
	group, making := errgroup.WithContext(ctx)
	group.SetLimit(4) // all take a slot of one TaskQuota
	for i := range t.of.finished {
		group.Go(func() error {
			task := newTask(nsList, fmt.Sprintf("finished-%04d", i), "HLIST", "^nobody$")
			task.Spec.Tasks.PublishMessageTask.Payload = text
			return poll(making, 100*time.Millisecond, func() error { // a busy machine may be late for the webhook
				return client.IgnoreAlreadyExists(t.env.Client.Create(making, task.DeepCopy()))
			})
		})
	}
	err := group.Wait()
	if err != nil {
		return fmt.Errorf("make finished tasks: %w", err)
	}
	return awaitNoSlots(ctx, t.env, nsList)
}

// makeURLs starts the servers of hostile URLs.
func (t *hostileTenant) makeURLs(ctx context.Context) error {
	huge, err := startHuge(ctx)
	if err != nil {
		return err
	}
	for _, query := range []string{
		"pool_health_check_period=0s", "pool_health_check_period=1ns", "pool_min_conns=2147483647",
		"sslmode=verify-ca&sslrootcert=/etc/passwd", "sslcert=/etc/passwd&sslkey=/etc/passwd", "passfile=/etc/shadow",
		"servicefile=/etc/passwd&service=x", "host=/var/run/postgresql",
	} {
		t.urls = append(t.urls, t.url+"&"+query)
	}
	for i := range 20 { // ports of their own: a server that is known to be silent is left alone
		silent, err := startSilent(ctx)
		if err != nil {
			return err
		}
		t.urls = append(t.urls, "postgres://user:password@"+silent+"/postgres?sslmode=disable")
		if i%4 == 0 {
			t.urls = append(t.urls, "postgres://user:password@"+huge+fmt.Sprintf("/huge%d?sslmode=disable", i))
		}
	}
	return nil
}

// turn makes servers and rows hostile, or harmless.
func (t *hostileTenant) turn(ctx context.Context, hostile bool) error {
	t.of.broker.hostile.Store(hostile)
	if !hostile {
		return nil
	}
	t.away.shut()
	// Of the answers to an UPDATE this makes rows that nobody asked for, for one product.
	_, err := t.conn.Exec(ctx, `CREATE FUNCTION rename() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN NEW.device_name := NEW.device_name || 'x'; RETURN NEW; END $$;
		CREATE TRIGGER rename BEFORE UPDATE ON batchtask_device FOR EACH ROW WHEN (OLD.product_id = '`+renameProduct+`' AND OLD.device_name LIKE '%5')
		EXECUTE FUNCTION rename()`)
	if err != nil {
		return fmt.Errorf("make a trigger: %w", err)
	}
	return nil
}

func (t *hostileTenant) names() []string {
	var names []string
	for _, a := range t.acts() {
		names = append(names, a.name)
	}
	return names
}

// run makes all requests until ctx ends and returns how many there were. A request that is
// due is made whatever has become of the one before it, so the rate does not follow the answers.
func (t *hostileTenant) run(ctx context.Context, hostile bool) int {
	var made atomic.Int64
	var all sync.WaitGroup
	for _, a := range t.acts() {
		all.Go(func() {
			var under sync.WaitGroup
			defer under.Wait()
			places := make(chan struct{}, actsAtOnce)
			tick := time.NewTicker(a.every)
			defer tick.Stop()
			var failed, left atomic.Int64
			var once sync.Once
			var reason error
			n := 0
			for ; ctx.Err() == nil; n++ {
				select {
				case places <- struct{}{}:
					under.Go(func() {
						defer func() { <-places }()
						bounded, cancel := context.WithTimeout(ctx, actTime)
						defer cancel()
						made.Add(1)
						if err := a.do(bounded, n, hostile); err != nil && ctx.Err() == nil {
							failed.Add(1)
							once.Do(func() { reason = err })
						}
					})
				default:
					left.Add(1)
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
			under.Wait()
			if failed.Load() > 0 || left.Load() > 0 {
				progress(fmt.Sprintf("%s: of %d requests %d were refused or failed, %d left out; the first: %.300s",
					formOf(a, hostile), n, failed.Load(), left.Load(), errorText(reason)))
			}
		})
	}
	all.Wait()
	return int(made.Load())
}

func formOf(a act, hostile bool) string {
	if hostile {
		return a.name
	}
	return "the harmless form of: " + a.name
}

func errorText(err error) string {
	if err == nil {
		return "-"
	}
	return err.Error()
}

// name returns one that no other object has.
func (t *hostileTenant) name(prefix string) string {
	return fmt.Sprintf("%s-%d", prefix, t.made.Add(1))
}

// create makes an object, and deletes it after keep or when ctx ends.
func (t *hostileTenant) create(ctx context.Context, object client.Object, keep time.Duration) error {
	if err := t.env.Client.Create(ctx, object); err != nil {
		return err
	}
	_ = pause(ctx, keep)
	return client.IgnoreNotFound(t.env.Client.Delete(context.WithoutCancel(ctx), object))
}

package service

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	kubeclient "sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	productowner "batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

// storm lets devices report while tasks run over them. Each version from 1 to the
// last must have been told exactly once, in an answer or in a delta, and the shadows
// must hold what each has written.
//
// A store that writes many shadows at once looks at all of them again where one was
// written by somebody else in between. It makes the delta of those that it had written
// of what they are then, so a delta may tell the version of reports after it.
func storm(t *testing.T, s *running, url string, store fleet.Store, p fleet.Product, names []string, updates int) {
	const tasks = 3
	c := connect(t, url, "devices", 0)
	var mu sync.Mutex
	told, deltas := map[string][]int64{}, map[string][]int64{}
	tell := func(in map[string][]int64, name string, version int64) {
		mu.Lock()
		defer mu.Unlock()
		in[name] = append(in[name], version)
	}
	var all sync.WaitGroup
	var reported atomic.Int64
	for _, name := range names {
		all.Go(func() {
			for i := range updates {
				got := parse(t, c.ask(name, fmt.Sprintf(`{"type":"update","state":{"reported":{"i":%d,"f%d":true}},"clientToken":%d}`, i, i%5, i)))
				if got.Result != 0 || string(got.ClientToken) != fmt.Sprint(i) {
					t.Errorf("device %s: update %d was answered with result %d, token %s", name, i, got.Result, got.ClientToken)
					return
				}
				tell(told, name, got.Payload.Version)
				reported.Add(1)
			}
		})
	}
	for n := range tasks {
		all.Go(func() {
			// Spread over the run, which ends: each answer must come in time.
			for reported.Load() < int64(n*len(names)*updates/tasks) && !t.Failed() {
				<-time.After(2 * time.Millisecond)
			}
			patch, err := shadow.ParseDesired(fmt.Sprintf(`{"task-%d":%d}`, n, n))
			if err != nil {
				t.Error(err)
				return
			}
			u := fleet.DesiredUpdate{TaskUID: fmt.Sprint("task-", n), Patch: patch, Now: time.UnixMilli(1600000000123)}
			for left := names; len(left) > 0; {
				var again []string
				for i, result := range store.ApplyDesired(t.Context(), p, u, left) {
					if result.Err != nil {
						again = append(again, left[i]) // as the executor does
						continue
					}
					var delta answered
					if err := json.Unmarshal(result.Delta, &delta); err != nil {
						t.Errorf("delta %q: %v", result.Delta, err)
					}
					tell(deltas, left[i], delta.Payload.Version)
				}
				left = again
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	want := make([]int64, tasks+updates)
	for i := range want {
		want[i] = int64(i + 1)
	}
	_, batches := store.(*postgres.Store)
	for _, name := range names {
		if batches {
			settleDeltas(told[name], deltas[name], want)
		}
		told[name] = append(told[name], deltas[name]...)
		slices.Sort(told[name])
		if diff := cmp.Diff(want, told[name]); diff != "" {
			t.Errorf("versions of %s (-want +got):\n%s", name, diff)
		}
		got, err := store.ReadShadow(t.Context(), p, name)
		if err != nil {
			t.Fatal(err)
		}
		wantReported := fmt.Sprintf(`{"f0":true,"f1":true,"f2":true,"f3":true,"f4":true,"i":%d}`, updates-1)
		if got.Reported != wantReported || got.Desired != `{"task-0":0,"task-1":1,"task-2":2}` || got.Version != tasks+int64(updates) {
			t.Errorf("device %s: %+v, want %s reported at version %d", name, got.Stored, wantReported, tasks+updates)
		}
	}
	// A message is held for a moment longer than its answer takes.
	eventually(t, "no message is held at the end", func() bool { return s.queue.held() == 0 })
}

// settleDeltas puts in the place of each delta's version the one that no answer has told, if
// the delta tells that or a later one.
func settleDeltas(answers, deltas, want []int64) {
	var missing []int64
	for _, version := range want {
		if !slices.Contains(answers, version) {
			missing = append(missing, version)
		}
	}
	slices.Sort(deltas)
	for i := range min(len(deltas), len(missing)) {
		if deltas[i] > missing[i] {
			deltas[i] = missing[i]
		}
	}
}

func TestStormInMemory(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	var names []string
	for i := range 200 {
		names = append(names, fmt.Sprint("d", i))
	}
	store := memory(t, names...)
	storm(t, start(t, broker.URL(), store, Options{}), broker.URL(), store, product, names, 50)
}

// The same with what is shipped: Device and Product objects at a real API server.
func TestStormAtTheAPIServer(t *testing.T) {
	env := testenv.Start(t)
	broker := mqtttest.StartMosquitto(t)
	p := fleet.Product{Namespace: env.Namespace(t), ProductID: product.ProductID}
	claim := &v1alpha1.ProductIDClaim{Spec: v1alpha1.ProductIDClaimSpec{ProductID: p.ProductID, Namespace: p.Namespace}}
	claim.Name = productowner.ClaimName(p.ProductID)
	for _, owner := range []kubeclient.Object{testobj.Product("p").In(p.Namespace).Obj(), claim} {
		if err := env.Client.Create(t.Context(), owner); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := env.Client.Delete(context.Background(), owner); err != nil {
				t.Errorf("deleting the product: %v", err)
			}
		})
	}
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprint("d", i))
		if err := env.Client.Create(t.Context(), testobj.Device(names[i]).In(p.Namespace).Obj()); err != nil {
			t.Fatal(err)
		}
	}
	devices, err := cache.New(env.Config, cache.Options{
		Scheme:   testenv.Scheme(),
		ByObject: map[kubeclient.Object]cache.ByObject{&v1alpha1.Device{}: {Transform: kube.StripDevice}},
	})
	if err != nil {
		t.Fatal(err)
	}
	store, err := kube.New(t.Context(), devices, env.Client)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- devices.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-stopped; err != nil {
			t.Errorf("running the cache: %v", err)
		}
	})
	if err := store.Sync(t.Context(), p.Namespace); err != nil {
		t.Fatal(err)
	}
	s := startWith(t, broker.URL(), store, productowner.Finder{Reader: env.Client}, Options{})
	storm(t, s, broker.URL(), store, p, names, 20)
}

// counting counts the changes that were made.
type counting struct {
	fleet.Store
	mu      sync.Mutex
	changes map[string]int64
}

func (c *counting) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	err := c.Store.ChangeShadow(ctx, p, name, change)
	if err == nil {
		c.mu.Lock()
		c.changes[name]++
		c.mu.Unlock()
	}
	return err
}

// Whatever is killed or restarted in the middle, what devices have sent with QoS 1
// is in their shadows at the end.
func TestRestarts(t *testing.T) {
	const devices, updates = 20, 40
	broker := mqtttest.StartMosquitto(t, mqtttest.WithPersistence())
	var names []string
	for i := range devices {
		names = append(names, fmt.Sprint("d", i))
	}
	inner := memory(t, names...)
	store := &counting{Store: inner, changes: map[string]int64{}}
	opts := Options{}
	opts.MQTT.WriteTimeout = time.Second
	s := start(t, broker.URL(), store, opts)
	c := connectWith(t, broker.URL(), "devices", 1, 5*time.Second)

	var all sync.WaitGroup
	var done atomic.Int64
	for _, name := range names {
		all.Go(func() {
			for i := range updates {
				c.insist(name, i, fmt.Sprintf(`{"type":"update","state":{"reported":{"i":%d,"f%d":%d}},"clientToken":%d}`, i, i, i, i))
				done.Add(1)
			}
		})
	}
	at := func(percent int64) {
		eventually(t, fmt.Sprint(percent, "% are done"), func() bool { return done.Load() >= percent*devices*updates/100 })
	}
	at(15)
	s.stop() // planned
	s = start(t, broker.URL(), store, opts)
	at(35)
	broker.Kill()
	broker.Restart()
	at(60)
	broker.Kill() // both at once
	s.stop()
	broker.Restart()
	s = start(t, broker.URL(), store, opts)
	all.Wait()
	s.stop() // what was sent twice may still be carried out

	wantReported := map[string]int64{"i": updates - 1}
	for i := range int64(updates) {
		wantReported[fmt.Sprint("f", i)] = i
	}
	for _, name := range names {
		got := inner.Shadow(t, product, name)
		var reported map[string]int64
		if err := json.Unmarshal([]byte(got.Reported), &reported); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(wantReported, reported); diff != "" {
			t.Errorf("reported by %s (-want +got):\n%s", name, diff)
		}
		if got.Version < updates || got.Version != store.changes[name] {
			t.Errorf("version %d of %s after %d changes that were made of %d updates", got.Version, name, store.changes[name], updates)
		}
	}
}

// insist sends a message until it is answered, as device libraries do: an answer of
// QoS 0 may be lost with a connection.
func (c *client) insist(name string, token int, payload string) {
	deadline := time.Now().Add(2 * patience)
	for time.Now().Before(deadline) {
		published := c.current().Publish(device{product.ProductID, name}.topic(), c.qos, false, payload)
		if !published.WaitTimeout(3*time.Second) || published.Error() != nil {
			<-time.After(20 * time.Millisecond) // the connection is being made anew
			continue
		}
		for {
			answer, err := c.next(name, 3*time.Second)
			if err != nil {
				break
			}
			if got := parse(c.t, answer); string(got.ClientToken) == fmt.Sprint(token) {
				if got.Result != 0 {
					c.t.Errorf("device %s: result %d", name, got.Result)
				}
				return
			}
		}
	}
	c.t.Errorf("device %s: message %d was never answered", name, token)
}

// The same with rows of a database: as many devices and updates as in memory, for it
// takes them.
func TestStormInPostgres(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	store, err := postgres.Open(t.Context(), postgres.Options{URL: pgtest.Start(t).Database(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	var names []string
	_, err = store.Import(t.Context(), product, func(yield func(postgres.Device, error) bool) {
		for i := range 200 {
			names = append(names, fmt.Sprint("d", i))
			if !yield(postgres.Device{Name: names[i]}, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	storm(t, start(t, broker.URL(), store, Options{}), broker.URL(), store, product, names, 50)
}

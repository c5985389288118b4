package service

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// silent is a store of which one product's calls hang until their time is over, as those
// of a database that was stopped, or fail.
type silent struct {
	fleet.Store
	productID string
	fails     bool
	back      atomic.Bool
	calls     atomic.Int64
}

func (s *silent) hang(ctx context.Context, p fleet.Product) error {
	if p.ProductID != s.productID || s.back.Load() {
		return nil
	}
	s.calls.Add(1)
	if s.fails {
		return errAway
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *silent) ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error) {
	if err := s.hang(ctx, p); err != nil {
		return fleet.Shadow{}, err
	}
	return s.Store.ReadShadow(ctx, p, name)
}

func (s *silent) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	if err := s.hang(ctx, p); err != nil {
		return err
	}
	return s.Store.ChangeShadow(ctx, p, name, change)
}

// Devices of one tenant whose database is away, or silent, speak all the time; those of
// another are answered all the same, and the first are told.
func TestOthersAreAnswered(t *testing.T) {
	const speaking, asking, asks = 200, 10, 30
	for name, fails := range map[string]bool{"silent": false, "failing": true} {
		t.Run(name, func(t *testing.T) {
			// As the example has it, where nothing more comes while many wait.
			broker := mqtttest.StartMosquitto(t, mqtttest.WithConfig("max_inflight_messages 1000"))
			bad := fleet.Product{Namespace: "there", ProductID: "BAD"}
			memory := memory(t)
			for i := range asking {
				memory.Create(t, product, fleettest.Device{Name: fmt.Sprint("d", i)})
			}
			for i := range speaking {
				memory.Create(t, bad, fleettest.Device{Name: fmt.Sprint("d", i)})
			}
			store := &silent{Store: memory, productID: bad.ProductID, fails: fails}
			// Long enough that whoever waits for it does not come to an end in time.
			s := startWith(t, broker.URL(), store, owners{product.ProductID: product.Namespace, bad.ProductID: bad.Namespace}, Options{RetryTime: 20 * time.Second})
			loud, c := connect(t, broker.URL(), "bad", 1), connect(t, broker.URL(), "good", 1)

			stop := make(chan struct{})
			var talking sync.WaitGroup
			talking.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
						loud.sendTo(device{bad.ProductID, fmt.Sprint("d", i%speaking)}.topic(), `{"type":"update","state":{"reported":{"a":1}},"clientToken":"t"}`)
						for _, hears := range []*client{loud, c} {
							drain(hears.on(device{bad.ProductID, fmt.Sprint("d", i%speaking)}.resultTopic()))
						}
					}
				}
			})
			eventually(t, "its calls hang", func() bool { return store.calls.Load() > 1 })
			var all sync.WaitGroup
			var late atomic.Int64
			for i := range asking {
				all.Go(func() {
					for range asks {
						began := time.Now()
						if got := parse(t, c.ask(fmt.Sprint("d", i), `{"type":"update","state":{"reported":{"a":1}}}`)); got.Result != 0 {
							t.Errorf("result %d of a device whose store is well", got.Result)
						}
						if time.Since(began) > 15*time.Second {
							late.Add(1)
						}
					}
				})
			}
			all.Wait()
			if n := late.Load(); n > 0 {
				t.Errorf("%d of %d answers took 15 s and more", n, asking*asks)
			}
			eventually(t, "the product is away", func() bool { return testutil.ToFloat64(s.metrics.refused.WithLabelValues(refusedAway)) > 10 })
			close(stop)
			talking.Wait()
			one := device{bad.ProductID, "d0"}
			ask := func(token string) answered {
				<-time.After(50 * time.Millisecond)
				drain(c.on(one.resultTopic())) // it hears all of them too
				loud.sendTo(one.topic(), `{"type":"get","clientToken":"`+token+`"}`)
				return parse(t, <-loud.on(one.resultTopic()))
			}
			eventually(t, "a device of the other is told at once", func() bool {
				drain(loud.on(one.resultTopic()))
				began := time.Now()
				got := ask("told")
				return got.Result == 5100 && string(got.ClientToken) == `"told"` && time.Since(began) < 5*time.Second
			})
			store.back.Store(true)
			eventually(t, "it is answered when its store is back", func() bool { return ask("back").Result == 0 })
		})
	}
}

// byProduct is a store for each product.
type byProduct map[string]Store

func (b byProduct) of(p fleet.Product) Store { return b[p.ProductID] }

func (b byProduct) ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error) {
	return b.of(p).ReadShadow(ctx, p, name)
}

func (b byProduct) ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error {
	return b.of(p).ChangeShadow(ctx, p, name, change)
}

// The same with a real database that is stopped: its devices are told within the retry
// time, others are answered all the while, and it is found when it goes on.
func TestStoppedPostgres(t *testing.T) {
	const speaking = 200
	broker := mqtttest.StartMosquitto(t, mqtttest.WithConfig("max_inflight_messages 1000"))
	server := pgtest.Start(t)
	database, err := postgres.Open(t.Context(), postgres.Options{URL: server.Database(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Resume()
		database.Close()
	})
	bad := fleet.Product{Namespace: "there", ProductID: "BAD"}
	if _, err := database.Import(t.Context(), bad, func(yield func(postgres.Device, error) bool) {
		for i := range speaking {
			if !yield(postgres.Device{Name: fmt.Sprint("d", i)}, nil) {
				return
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	stores := byProduct{bad.ProductID: database, product.ProductID: memory(t, "good")}
	s := startWith(t, broker.URL(), stores, owners{product.ProductID: product.Namespace, bad.ProductID: bad.Namespace}, Options{RetryTime: 10 * time.Second})
	c := connect(t, broker.URL(), "devices", 1)
	name := func(i int) device { return device{bad.ProductID, fmt.Sprint("d", i)} }
	say := func(i int) {
		c.sendTo(name(i).topic(), `{"type":"update","state":{"reported":{"a":1}},"clientToken":"t"}`)
	}
	result := func(i int) int {
		select {
		case answer := <-c.on(name(i).resultTopic()):
			return parse(t, answer).Result
		case <-time.After(patience):
			t.Errorf("device %d is not answered", i)
			return -1
		}
	}
	say(0)
	if got := result(0); got != 0 {
		t.Fatalf("result %d while the database is there", got)
	}
	server.Pause()
	for i := range speaking {
		say(i)
	}
	for i := range 50 {
		if got := parse(t, c.ask("good", `{"type":"update","state":{"reported":{"a":1}}}`)); got.Result != 0 || got.Payload.Version != int64(i+1) {
			t.Errorf("result %d, version %d of a device of another product", got.Result, got.Payload.Version)
		}
	}
	for i := range speaking {
		if got := result(i); got != 5100 {
			t.Errorf("device %d: result %d while the database is stopped", i, got)
		}
	}
	say(1)
	if result(1); testutil.ToFloat64(s.metrics.refused.WithLabelValues(refusedAway)) == 0 {
		t.Error("the product is not away")
	}
	server.Resume()
	eventually(t, "its devices are answered when it goes on", func() bool {
		<-time.After(100 * time.Millisecond)
		say(2)
		return result(2) == 0
	})
}

func drain(answers <-chan string) {
	for {
		select {
		case <-answers:
		default:
			return
		}
	}
}

// crashing is a store with a fault of the program.
type crashing struct{ fleet.Store }

func (c crashing) ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error) {
	if name == "bad" {
		panic("a fault")
	}
	return c.Store.ReadShadow(ctx, p, name)
}

// A panic is one message's.
func TestPanic(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	start(t, broker.URL(), crashing{memory(t, "good", "bad")}, Options{})
	c := connect(t, broker.URL(), "devices", 1)
	for range 3 {
		if got := parse(t, c.ask("bad", `{"type":"get","clientToken":1}`)); got.Result != 5100 || string(got.ClientToken) != "1" {
			t.Errorf("result %d, token %s, want 5100 and 1", got.Result, got.ClientToken)
		}
		if got := parse(t, c.ask("good", `{"type":"get"}`)); got.Result != 0 {
			t.Errorf("result %d of another device, want 0", got.Result)
		}
	}
}

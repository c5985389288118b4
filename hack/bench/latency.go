package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
)

const (
	messageAfter = 30 * time.Second
	// idle is how long nothing happens before each task. Of those that come faster, some
	// would wait up to 100 ms for the API server to be sure that a list is fresh.
	idle           = 150 * time.Millisecond
	reactorLimitIs = "create of " + bareIs + ", of which a program with a watch publishes one message at QoS 1"
)

// measureLatency measures the time from the create call to the first message at a
// device, of a task and, in turn with it, of a bare task to which a minimal program
// reacts. Nothing else goes on, and has not for a moment. The first of each is not counted:
// the API server makes room for a kind at its first use.
func measureLatency(ctx context.Context, env *localenv.Env, names []string, count int) ([]figure, error) {
	progress(fmt.Sprintf("create to first message, %d times", count))
	devices, err := newListener(env.MQTTURL, names[:2])
	if err != nil {
		return nil, err
	}
	defer devices.client.Disconnect(100)
	bare, bareErr := newReactor(ctx, env, names[1])
	if bareErr == nil {
		defer bare.close()
	}

	var tasks, limits series
	for i := range 1 + count {
		name := fmt.Sprintf("latency-%d", i)
		time.Sleep(idle)
		took, err := devices.await(ctx, names[0], func() error {
			return env.Client.Create(ctx, newTask(env.Namespace, name, productID, "^"+names[0]+"$"))
		})
		if err != nil {
			return nil, fmt.Errorf("task %s: %w", name, err)
		}
		if i > 0 {
			tasks.add(took, nil)
		}
		if err := awaitNoSlots(ctx, env, env.Namespace); err != nil {
			return nil, err
		}
		time.Sleep(idle)
		if bareErr == nil {
			took, bareErr = devices.await(ctx, names[1], func() error {
				return bare.client.Create(ctx, newTask(env.Namespace, name, productID, "^"+names[1]+"$"))
			})
			bareErr = errors.Join(bareErr, bare.failed())
		}
		if i > 0 {
			limits.add(took, bareErr)
		}
	}
	at := func(percent int) figure {
		return newFigure(fmt.Sprintf("create to first message, p%d of %d tasks", percent, count), "ms", tasks.percentile(percent)).
			beside(limits.percentile(percent), reactorLimitIs).aiming(&aim{ofRatio, atMost, 2})
	}
	return []figure{at(50), at(99)}, nil
}

// listener is devices on one connection.
type listener struct {
	client  paho.Client
	arrived map[string]chan time.Time // by device
}

func newListener(brokerURL string, devices []string) (*listener, error) {
	l := &listener{arrived: map[string]chan time.Time{}}
	var err error
	if l.client, err = connectClient(brokerURL, "bench-device"); err != nil {
		return nil, err
	}
	for _, device := range devices {
		// Room for a message that comes twice.
		arrived := make(chan time.Time, 16)
		l.arrived[device] = arrived
		receive := func(paho.Client, paho.Message) {
			select {
			case arrived <- time.Now():
			default:
			}
		}
		if token := l.client.Subscribe(productID+"/"+device+"/"+topic, 1, receive); token.Wait() && token.Error() != nil {
			l.client.Disconnect(100)
			return nil, fmt.Errorf("subscribe device %s: %w", device, token.Error())
		}
	}
	return l, nil
}

// await returns how many milliseconds there are from the call of create to the first
// message that the device gets.
func (l *listener) await(ctx context.Context, device string, create func() error) (float64, error) {
	for len(l.arrived[device]) > 0 {
		<-l.arrived[device]
	}
	started := time.Now()
	if err := create(); err != nil {
		return 0, err
	}
	select {
	case at := <-l.arrived[device]:
		return float64(at.Sub(started).Microseconds()) / 1000, nil
	case <-time.After(messageAfter):
		return 0, fmt.Errorf("device %s got no message in %v", device, messageAfter)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// reactor publishes one message for each bare task that it sees.
type reactor struct {
	client client.WithWatch
	watch  watch.Interface
	broker paho.Client
	errs   chan error
}

func newReactor(ctx context.Context, env *localenv.Env, device string) (*reactor, error) {
	r := &reactor{errs: make(chan error, 1)}
	var err error
	if r.client, err = newBareClient(env); err != nil {
		return nil, err
	}
	if r.watch, err = r.client.Watch(ctx, &v1alpha1.BatchTaskList{}, client.InNamespace(env.Namespace)); err != nil {
		return nil, fmt.Errorf("watch bare tasks: %w", err)
	}
	if r.broker, err = connectClient(env.MQTTURL, "bench-reactor"); err != nil {
		r.watch.Stop()
		return nil, err
	}
	go func() {
		for event := range r.watch.ResultChan() {
			if event.Type != watch.Added {
				continue
			}
			if token := r.broker.Publish(productID+"/"+device+"/"+topic, 1, false, payload); token.Wait() && token.Error() != nil {
				r.errs <- fmt.Errorf("publish for a bare task: %w", token.Error())
				return
			}
		}
	}()
	return r, nil
}

// failed returns why no more is published, if so.
func (r *reactor) failed() error {
	select {
	case err := <-r.errs:
		return err
	default:
		return nil
	}
}

func (r *reactor) close() {
	r.watch.Stop()
	r.broker.Disconnect(100)
}

// connectClient connects a client that does not hide a lost connection.
func connectClient(brokerURL, id string) (paho.Client, error) {
	c := paho.NewClient(paho.NewClientOptions().AddBroker(brokerURL).SetClientID(id).SetAutoReconnect(false))
	if token := c.Connect(); token.Wait() && token.Error() != nil {
		return nil, fmt.Errorf("connect %s: %w", id, token.Error())
	}
	return c, nil
}

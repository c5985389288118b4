// Package simulator runs simulated devices, each with an MQTT connection of its
// own, that count and keep what they receive. Some of them behave as real ones do:
// they look after their shadows.
package simulator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Defaults of Options.
const (
	DefaultKeep          = 8
	DefaultConcurrency   = 32
	DefaultAnswerTimeout = 5 * time.Second
)

// Options say which devices to simulate. The zero value of a field that is not
// required stands for its default.
type Options struct {
	// BrokerURL is the broker, such as tcp://127.0.0.1:1883. Required.
	BrokerURL string
	// ProductID is the product of all devices. Required.
	ProductID string
	// Names are the names of the devices, each once. Required.
	Names []string
	// Topics are the topic names that each device subscribes to, the parts after
	// {productID}/{deviceName}/. "event".
	Topics []string
	// Shadows is how many of the devices, the first of Names, look after their
	// shadows: they get it after each connect, do what is desired of them, report that
	// and clear the desired part. The others only count. 0.
	Shadows int
	// AnswerTimeout is after how long such a device sends again what was not answered;
	// each pause after that is twice as long, up to a minute. 5 s.
	AnswerTimeout time.Duration
	// Offline are devices, of Names, that Start leaves alone: see Fleet.Connect.
	Offline []string
	// Keep is how many messages of each device are kept, the last ones. All are
	// counted. 8.
	Keep int
	// Concurrency is how many devices connect at once. 32.
	Concurrency int
}

// Message is what a device received, or sent.
type Message struct {
	Topic   string
	Payload string
}

// Fleet is a number of connected devices.
type Fleet struct {
	devices map[string]*device
	total   atomic.Int64
}

// Start connects all devices and subscribes them, with QoS 1, to their topics
// and to the answers of their shadow. It returns when all of them are, or with
// the first error; then none is connected. A device that loses its connection
// connects and subscribes again; what was sent in between it does not get.
//
// The devices stay until Close; ctx bounds Start alone.
func Start(ctx context.Context, opts Options) (*Fleet, error) {
	if opts.Topics == nil {
		opts.Topics = []string{"event"}
	}
	if opts.Keep == 0 {
		opts.Keep = DefaultKeep
	}
	if opts.Concurrency == 0 {
		opts.Concurrency = DefaultConcurrency
	}
	if opts.AnswerTimeout == 0 {
		opts.AnswerTimeout = DefaultAnswerTimeout
	}
	if opts.BrokerURL == "" || opts.ProductID == "" || len(opts.Names) == 0 {
		return nil, errors.New("simulated devices need a broker, a product and names")
	}
	fleet := &Fleet{devices: make(map[string]*device, len(opts.Names))}
	// Two fleets at one broker must not throw each other's connections out.
	run := rand.Text()[:8]
	for i, name := range opts.Names {
		if _, twice := fleet.devices[name]; twice {
			return nil, fmt.Errorf("two simulated devices are named %q", name)
		}
		fleet.devices[name] = newDevice(fleet, opts, name, fmt.Sprintf("sim-%s-%d", run, i), i < opts.Shadows)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(opts.Concurrency)
	for _, name := range opts.Names {
		if !slices.Contains(opts.Offline, name) {
			group.Go(func() error { return fleet.Connect(ctx, name) })
		}
	}
	if err := group.Wait(); err != nil {
		fleet.Close()
		return nil, err
	}
	return fleet, nil
}

// Connect connects and subscribes a device that Start has left alone, once. The
// device stays until Close; ctx bounds the attempt alone.
func (f *Fleet) Connect(ctx context.Context, name string) error {
	d, ok := f.devices[name]
	if !ok {
		return fmt.Errorf("no simulated device is named %q", name)
	}
	if err := d.connect(ctx); err != nil {
		return fmt.Errorf("connecting device %q: %w", name, err)
	}
	return nil
}

// Close disconnects all devices. What they have received can still be read.
func (f *Fleet) Close() {
	var closing sync.WaitGroup
	for _, d := range f.devices {
		closing.Go(d.close)
	}
	closing.Wait()
}

// Total is how many messages all devices have received. Here and below, answers to
// what a device has sent itself do not count.
func (f *Fleet) Total() int64 { return f.total.Load() }

// Count is how many messages the device has received; 0 for a name that is not
// in the fleet.
func (f *Fleet) Count(name string) int64 {
	d, ok := f.devices[name]
	if !ok {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count
}

// Received returns the last messages of the device, the oldest first.
func (f *Fleet) Received(name string) []Message {
	d, ok := f.devices[name]
	if !ok {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.last)
}

// Shadow returns what the device makes of its shadow; nothing for one that does not
// look after it.
func (f *Fleet) Shadow(name string) Shadow {
	d, ok := f.devices[name]
	if !ok || d.keeper == nil {
		return Shadow{}
	}
	d.keeper.mu.Lock()
	defer d.keeper.mu.Unlock()
	return d.keeper.shadow
}

// Dialog returns the last messages that the device sent about its shadow and the
// answers, as many as Options.Keep, the oldest first.
func (f *Fleet) Dialog(name string) []Message {
	d, ok := f.devices[name]
	if !ok || d.keeper == nil {
		return nil
	}
	d.keeper.mu.Lock()
	defer d.keeper.mu.Unlock()
	return slices.Clone(d.keeper.dialog)
}

// Wait returns when each of the devices has received at least n messages since
// Start. When ctx ends before, the error says which of them have not.
func (f *Fleet) Wait(ctx context.Context, names []string, n int64) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	waiting := names
	for {
		var still []string
		for _, name := range waiting {
			if f.Count(name) < n {
				still = append(still, name)
			}
		}
		if waiting = still; len(waiting) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d devices, %q among them, have not received %d messages: %w",
				len(waiting), len(names), waiting[0], n, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// Package simulator runs simulated devices, each with an MQTT connection of its
// own, that count and keep what they receive.
package simulator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Defaults of Options.
const (
	DefaultKeep        = 8
	DefaultConcurrency = 32
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
	// Keep is how many messages of each device are kept, the last ones. All are
	// counted. 8.
	Keep int
	// Concurrency is how many devices connect at once. 32.
	Concurrency int
}

// Message is what a device received.
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
		fleet.devices[name] = newDevice(fleet, opts, name, fmt.Sprintf("sim-%s-%d", run, i))
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(opts.Concurrency)
	for _, name := range opts.Names {
		group.Go(func() error {
			if err := fleet.devices[name].connect(ctx); err != nil {
				return fmt.Errorf("connecting device %q: %w", name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		fleet.Close()
		return nil, err
	}
	return fleet, nil
}

// Close disconnects all devices. What they have received can still be read.
func (f *Fleet) Close() {
	var closing sync.WaitGroup
	for _, d := range f.devices {
		closing.Go(d.close)
	}
	closing.Wait()
}

// Total is how many messages all devices have received.
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
	return append([]Message(nil), d.last...)
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

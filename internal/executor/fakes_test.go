package executor

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"sync"
	"time"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/mqtt"
	"batchtask.dev/operator/internal/namefilter"
)

// devices is a fleet in memory, to inject faults.
type devices struct {
	fleet.Store // the rest, which the executor does not use

	mu    sync.Mutex
	names []string
	// apply says what becomes of a device's shadow; a delta for each if nil.
	apply func(name string) fleet.DesiredResult
	// scanFaults is how many calls of Scan fail before one succeeds.
	scanFaults int
	// noProduct says that the product has been deleted.
	noProduct bool
	// applyFaults is how many calls of ApplyDesired fail before one succeeds, and
	// applyTakes how long it takes over each device.
	applyFaults int
	applyTakes  time.Duration
	applied     map[string]int
	calls       []int // how many devices each call of ApplyDesired had
	// scanned is called before each call of Scan; it may be nil.
	scanned func(fleet.Query)
	// away says that nothing can be read, and hangs that it takes until nobody waits.
	away, hangs bool
	// results keeps the results of devices; nil for a fleet that does not.
	results *resultBook
}

func newDevices(n int) *devices {
	d := &devices{applied: map[string]int{}}
	for i := range uint64(n) {
		d.names = append(d.names, name(i))
	}
	return d
}

func (d *devices) Sync(context.Context, string) error { return nil }

func (d *devices) Total(context.Context, fleet.Product) (int64, error) {
	return int64(len(d.names)), nil
}

func (d *devices) Count(_ context.Context, q fleet.Query) (int64, error) {
	names, _, err := d.list(q, len(d.names)+1)
	return int64(len(names)), err
}

func (d *devices) Scan(ctx context.Context, q fleet.Query, limit int) ([]string, bool, error) {
	if d.scanned != nil {
		d.scanned(q)
	}
	d.mu.Lock()
	if d.hangs {
		d.mu.Unlock()
		<-ctx.Done()
		return nil, false, ctx.Err()
	}
	if d.away {
		d.mu.Unlock()
		return nil, false, errors.New("the store is away")
	}
	if d.noProduct {
		d.mu.Unlock()
		return nil, false, fleet.ErrNoProduct
	}
	if d.scanFaults > 0 {
		d.scanFaults--
		d.mu.Unlock()
		return nil, false, errors.New("the store is away")
	}
	d.mu.Unlock()
	return d.list(q, limit)
}

func (d *devices) list(q fleet.Query, limit int) (names []string, more bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	filter := regexp.MustCompile(q.Filter.String())
	from := sort.SearchStrings(d.names, q.After)
	for _, n := range d.names[from:] {
		if n == q.After || q.Filter != nil && !filter.MatchString(n) {
			continue
		}
		if q.Until != "" && n > q.Until {
			break
		}
		if len(names) == limit {
			return names, true, nil
		}
		names = append(names, n)
	}
	return names, false, nil
}

func (d *devices) ApplyDesired(_ context.Context, _ fleet.Product, _ fleet.DesiredUpdate, names []string) []fleet.DesiredResult {
	<-time.After(time.Duration(len(names)) * d.applyTakes)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, len(names))
	results := make([]fleet.DesiredResult, len(names))
	if d.applyFaults > 0 {
		d.applyFaults--
		for i := range results {
			results[i].Err = errors.New("the store is away")
		}
		return results
	}
	for i, n := range names {
		results[i] = fleet.DesiredResult{Delta: []byte(`{"type":"delta"}`)}
		if d.apply != nil {
			results[i] = d.apply(n)
		}
		if results[i].Err == nil {
			d.applied[n]++
		}
	}
	return results
}

// broker acknowledges messages, some or all, at once or at a pace.
type broker struct {
	mu       sync.Mutex
	received map[string]int // by topic
	held     []mqtt.Delivery

	// result says what becomes of a message; nil acknowledges all. hold keeps it
	// without a result.
	result func(topic string) error
	// pace is the time between two acknowledgements; 0 acknowledges at once.
	pace   time.Duration
	queue  chan mqtt.Delivery
	closed chan struct{}
}

var errHold = errors.New("hold")

func newBroker() *broker {
	return &broker{received: map[string]int{}, queue: make(chan mqtt.Delivery, 100_000), closed: make(chan struct{})}
}

func (b *broker) Connected() bool { return true }

func (b *broker) Publish(_ context.Context, d mqtt.Delivery) error {
	b.mu.Lock()
	b.received[d.Topic()]++
	b.mu.Unlock()
	b.queue <- d
	return nil
}

// serve settles messages until close, like a connection does, from its own goroutine.
func (b *broker) serve() {
	for {
		select {
		case <-b.closed:
			return
		case d := <-b.queue:
			select {
			case <-time.After(b.pace):
			case <-b.closed:
				return
			}
			var err error
			if b.result != nil {
				err = b.result(d.Topic())
			}
			if errors.Is(err, errHold) {
				b.mu.Lock()
				b.held = append(b.held, d)
				b.mu.Unlock()
				continue
			}
			d.Settle(err)
		}
	}
}

// abandonHeld settles what was held as a closed pool does.
func (b *broker) abandonHeld() { b.answerHeld(mqtt.ErrAbandoned) }

// answerHeld settles what was held.
func (b *broker) answerHeld(err error) {
	b.mu.Lock()
	held := b.held
	b.held = nil
	b.mu.Unlock()
	for _, d := range held {
		d.Settle(err)
	}
}

func (b *broker) count(topic string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.received[topic]
}

func (b *broker) total() (messages, topics int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.received {
		messages += n
	}
	return messages, len(b.received)
}

func publishTask(taskName, filter string) Task {
	task := Task{
		UID: "uid-of-" + typesUID(taskName), Product: fleet.Product{Namespace: "ns", ProductID: "P"},
		Filter: namefilter.MustParse(filter), Deadline: time.Now().Add(time.Hour),
		Publish: &Publish{Topic: "event", Payload: []byte("close")},
	}
	task.Namespace, task.Name = "ns", taskName
	return task
}

func shadowTask(taskName string) Task {
	task := publishTask(taskName, ".*")
	task.Publish = nil
	task.Desired = mustDesired(`{"state":"open"}`)
	return task
}

func topicOf(seq uint64) string { return fmt.Sprintf("P/%s/event", name(seq)) }

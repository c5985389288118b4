package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clocktesting "k8s.io/utils/clock/testing"
)

// words is a message that nobody hears the answer to.
type words []byte

func (w words) Payload() []byte          { return w }
func (words) Reply(string, []byte) error { return nil }
func (words) Ack()                       {}
func say(bytes int) *job                 { return &job{message: make(words, bytes)} }
func of(p, d any) device                 { return device{fmt.Sprint(p), fmt.Sprint(d)} }
func fill(q *queue, d device, n int) (got int) {
	for range n {
		if _, v, _ := q.put(d, "ns-"+d.productID, say(1), closed); v == held || v == heldFirst {
			got++
		}
	}
	return got
}

// closed gives up at once where put would wait.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func testQueue(places, workers int) (*queue, *clocktesting.FakeClock) {
	clk := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	return newQueue(places, workers, clk), clk
}

// Messages of a device are carried out in their order and one at a time, those of others
// meanwhile.
func TestQueueOrder(t *testing.T) {
	const devices, each, workers = 20, 50, 8 * tenantShare
	q, _ := testQueue(10_000, workers)
	var mu sync.Mutex
	var busy sync.Map
	most, now := 0, 0
	got := map[device][]int{}
	want := map[device][]int{}
	var running sync.WaitGroup
	work := func(l *line) {
		for j := q.first(l); j != nil; j = q.first(l) {
			if err := q.enter(t.Context(), l); err != nil {
				t.Error(err)
			}
			if _, twice := busy.LoadOrStore(l.device, true); twice {
				t.Errorf("device %s is worked on twice at once", l.device.name)
			}
			mu.Lock()
			now++
			most = max(most, now)
			got[l.device] = append(got[l.device], len(j.message.Payload()))
			mu.Unlock()
			mu.Lock()
			now--
			mu.Unlock()
			busy.Delete(l.device)
			q.leave(l)
			q.done(l)
		}
	}
	for i := range each {
		for d := range devices {
			d := of("P", d)
			want[d] = append(want[d], i)
			l, v, reason := q.put(d, "ns", say(i), nil)
			switch v {
			case heldFirst:
				running.Go(func() { work(l) })
			case held:
			default:
				t.Fatalf("message %d of %s: %v %s", i, d.name, v, reason)
			}
		}
	}
	q.close()
	<-q.empty
	running.Wait()
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(device{})); diff != "" {
		t.Errorf("carried out (-want +got):\n%s", diff)
	}
	if most > workers/tenantShare {
		t.Errorf("%d messages of one namespace were carried out at once, want at most %d", most, workers/tenantShare)
	}
	if _, v, _ := q.put(of("P", 1), "ns", say(1), nil); v != gone {
		t.Error("a closed queue took a message")
	}
	if len(q.lines)+len(q.products)+q.taken+q.running+q.held() != 0 {
		t.Errorf("left: %d lines, %d products, %d places, %d turns, %d messages", len(q.lines), len(q.products), q.taken, q.running, q.held())
	}
}

// One that is alone may fill the queue; with others each leaves room, none has more than
// an eighth, and a device far less.
func TestPlaces(t *testing.T) {
	q, _ := testQueue(8000, 128)
	if got := fill(q, of("A", 1), 9000); got != 8000 {
		t.Errorf("alone and well: %d places, want all", got)
	}
	q, _ = testQueue(8000, 128)
	fill(q, of("B", 1), 1)
	if got := fill(q, of("A", 1), 9000); got != 8000/deviceShare {
		t.Errorf("a device: %d places, want %d", got, 8000/deviceShare)
	}
	tenants := map[string]int{}
	for round := range 200 {
		for n := range 50 {
			tenants[fmt.Sprint("T", n)] += fill(q, of(fmt.Sprint("T", n), round), 20)
		}
	}
	for name, taken := range tenants {
		if taken < 50 || taken > 8000/tenantShare {
			t.Errorf("%s: %d places of 8000, with 50 others", name, taken)
		}
	}
	if got := fill(q, of("late", 1), 1); got != 1 {
		t.Error("no room for whoever comes last")
	}
	if _, _, reason := q.put(of("A", 1), "", say(1), closed); reason != refusedDevice {
		t.Errorf("refused for %q, want the device's share", reason)
	}
	if _, _, reason := q.put(of("T0", "new"), "", say(400*placeBytes), closed); reason != refusedTenant {
		t.Errorf("refused for %q, want the namespace's share", reason)
	}
	// Many products are one tenant.
	q, _ = testQueue(8000, 128)
	fill(q, of("B", 1), 1)
	got := 0
	for n := range 5000 {
		if _, v, _ := q.put(of(n, 1), "many", say(1), closed); v == heldFirst {
			got++
		}
	}
	if got > 8000/tenantShare {
		t.Errorf("5000 products of a namespace: %d places, want an eighth", got)
	}
	// Who was alone is not any more for a minute after somebody else has spoken.
	q, clk := testQueue(80, 128)
	fill(q, of("B", 1), 1)
	q.done(q.lines[of("B", 1)])
	if got := fill(q, of("A", 1), 100); got == 80 {
		t.Error("a device had all places although another had spoken")
	}
	clk.Step(aloneAfter)
	if fill(q, of("A", 1), 100); q.taken != 80 {
		t.Errorf("%d places a minute later, want all", q.taken)
	}
}

// What is large takes the room of many, so that memory is bounded.
func TestPlacesOfLargeMessages(t *testing.T) {
	q, _ := testQueue(10, 8)
	put := func(bytes int) verdict {
		_, v, _ := q.put(of("P", "d"), "ns", say(bytes), closed)
		return v
	}
	if v := put(8 * placeBytes); v != heldFirst || q.taken != 9 {
		t.Fatalf("verdict %d, %d places, want 9", v, q.taken)
	}
	if v := put(placeBytes); v != gone {
		t.Errorf("verdict %d without room", v)
	}
	if v := put(1); v != held || q.taken != 10 {
		t.Errorf("verdict %d, %d places, want the last", v, q.taken)
	}
	q.done(q.lines[of("P", "d")])
	q.done(q.lines[of("P", "d")])
	if v := put(1 << 20); v != held || q.taken != 10 {
		t.Errorf("a message larger than the queue: verdict %d, %d places, want all ten", v, q.taken)
	}
}

// A full queue holds up whoever wants to add, until there is room, the connection is
// lost, the store is in trouble, or the queue is closed.
func TestQueueFull(t *testing.T) {
	q, clk := testQueue(1, 8)
	d := of("P", "d")
	fill(q, d, 1)
	l := q.lines[d]
	type result struct {
		v      verdict
		reason string
	}
	try := func(giveUp <-chan struct{}) <-chan result {
		c := make(chan result, 1)
		go func() {
			_, v, reason := q.put(d, "", say(1), giveUp)
			c <- result{v, reason}
		}()
		return c
	}
	lost := make(chan struct{})
	r := try(lost)
	close(lost)
	if got := <-r; got.v != gone {
		t.Errorf("%+v for a lost connection", got)
	}
	r = try(nil)
	q.done(l)
	if got := <-r; got.v != held {
		t.Errorf("%+v although there was room", got)
	}
	r = try(nil)
	q.calling(l)
	clk.Step(q.slowAfter)
	q.tick(0)
	if got := <-r; got != (result{refused, refusedDevice}) {
		t.Errorf("%+v while the store is slow", got)
	}
	q.called(l, nil)
	q.tick(0)
	r = try(nil)
	q.close()
	if got := <-r; got.v != gone {
		t.Errorf("%+v of a closed queue", got)
	}
	q.done(l)
	<-q.empty
}

// grants lets lines wait for turns, and returns what tells which have one.
func grants(t *testing.T, q *queue, devices ...device) func() map[string]int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	for _, d := range devices {
		fill(q, d, 1)
		l := q.lines[d]
		all.Go(func() { _ = q.enter(ctx, l) })
	}
	eventually(t, "all wait", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		n := q.running
		for _, p := range q.products {
			n += len(p.waiting)
		}
		return n == len(devices)
	})
	return func() map[string]int {
		q.mu.Lock()
		defer q.mu.Unlock()
		by := map[string]int{}
		for _, p := range q.products {
			by[p.id] = p.running
		}
		return by
	}
}

// Turns: an eighth for a namespace, two for a product in trouble, and one after the
// other back.
func TestTurns(t *testing.T) {
	q, clk := testQueue(100_000, 80)
	var devices []device
	for i := range 100 {
		devices = append(devices, of("A", i))
	}
	devices = append(devices, of("B", 1), of("B", 2))
	running := grants(t, q, devices...)
	if diff := cmp.Diff(map[string]int{"A": 10, "B": 2}, running()); diff != "" {
		t.Errorf("turns (-want +got):\n%s", diff)
	}
	// All of A hang.
	q.mu.Lock()
	var hang []*line
	for _, l := range q.lines {
		if l.hasTurn && l.product.id == "A" {
			hang = append(hang, l)
		}
	}
	q.mu.Unlock()
	for _, l := range hang {
		q.calling(l)
	}
	clk.Step(q.slowAfter)
	q.tick(0)
	for _, l := range hang {
		q.called(l, errStoreAway)
		q.leave(l)
	}
	want := func(when string, a int) {
		t.Helper()
		q.tick(0)
		if got := running()["A"]; got != a {
			t.Errorf("%s: %d turns, want %d", when, got, a)
		}
	}
	want("while it fails", troubledTurns)
	q.called(hang[0], nil)
	want("when it has answered", troubledTurns)
	clk.Step(3 * recovery)
	want("a while later", troubledTurns+3)
	clk.Step(recovered)
	want("at the end", 10)
}

// A store that has failed for long is away: what waits is given up, what comes is
// refused, and it is looked at from time to time until it answers.
func TestAway(t *testing.T) {
	q, clk := testQueue(8000, 128)
	d := of("P", "d")
	fill(q, d, 2)
	fill(q, of("P", "other"), 1)
	l, other := q.lines[d], q.lines[of("P", "other")]
	ctx, _ := q.begin(t.Context(), l, l.jobs[0])
	otherCtx, _ := q.begin(t.Context(), other, other.jobs[0])
	fails := func() {
		q.calling(l)
		clk.Step(100 * time.Millisecond)
		q.called(l, errors.New("no route"))
	}
	fails()
	clk.Step(q.awayAfter / 2)
	fails()
	q.tick(0)
	if ctx.Err() != nil || otherCtx.Err() != nil {
		t.Error("given up too early")
	}
	// One device's shadow is locked, those of others are not.
	q.calling(other)
	q.called(other, nil)
	fails()
	clk.Step(q.awayAfter - time.Second)
	if told := q.tick(0); len(told) > 0 || ctx.Err() != nil {
		t.Errorf("given up although another call has succeeded: %v", told)
	}
	clk.Step(time.Second)
	told := q.tick(0)
	if len(told) != 1 || !told[0].away || told[0].namespace != "ns-P" || told[0].err.Error() != "no route" {
		t.Errorf("told %+v", told)
	}
	if !errors.Is(context.Cause(ctx), errStoreAway) || !errors.Is(context.Cause(otherCtx), errStoreAway) {
		t.Errorf("given up for %v and %v", context.Cause(ctx), context.Cause(otherCtx))
	}
	q.done(l)
	if ctx, _ := q.begin(t.Context(), l, l.jobs[0]); !errors.Is(context.Cause(ctx), errStoreAway) {
		t.Error("the next of the line is not given up")
	}
	if _, v, reason := q.put(d, "", say(1), nil); v != refused || reason != refusedAway {
		t.Errorf("verdict %d %s", v, reason)
	}
	if fill(q, of("Q", 1), 1) != 1 {
		t.Error("another product is refused too")
	}
	if !q.mayProbe("P") || q.mayProbe("P") || q.mayProbe("Q") {
		t.Error("one probe of the one product, at a time")
	}
	q.hasProbed("P", errors.New("still"))
	if q.mayProbe("P") {
		t.Error("probed again at once")
	}
	clk.Step(probeEvery)
	if !q.mayProbe("P") {
		t.Error("not probed again")
	}
	q.hasProbed("P", nil)
	if told := q.tick(0); len(told) != 1 || told[0].away {
		t.Errorf("told %+v, want that it is back", told)
	}
	if fill(q, d, 1) != 1 {
		t.Error("refused although it is back")
	}
}

// Who holds up the acknowledgements of many is given up, and nobody else is.
func TestHeldUp(t *testing.T) {
	q, clk := testQueue(8000, 128)
	fill(q, of("A", 1), 1)
	fill(q, of("A", 2), 1)
	fill(q, of("B", 1), 1)
	begin := func(d device) (*line, context.Context) {
		l := q.lines[d]
		ctx, _ := q.begin(t.Context(), l, l.jobs[0])
		return l, ctx
	}
	hangs, hangsCtx := begin(of("A", 1))
	_, waitsCtx := begin(of("A", 2))
	_, wellCtx := begin(of("B", 1))
	q.calling(hangs)
	q.tick(heldUpLimit)
	clk.Step(q.slowAfter)
	q.tick(heldUpLimit - 1)
	if hangsCtx.Err() != nil {
		t.Error("given up although few wait for it, or at once")
	}
	q.tick(heldUpLimit)
	if !errors.Is(context.Cause(hangsCtx), errHeldUp) || !errors.Is(context.Cause(waitsCtx), errHeldUp) || wellCtx.Err() != nil {
		t.Errorf("given up for %v, %v, %v", context.Cause(hangsCtx), context.Cause(waitsCtx), context.Cause(wellCtx))
	}
}

// Nothing is remembered for ever, and nobody's product is charged to somebody else.
func TestForgotten(t *testing.T) {
	q, clk := testQueue(8000, 128)
	d := of("P", "d")
	fill(q, d, 1)
	l := q.lines[d]
	if err := q.enter(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	q.owned(l, "elsewhere")
	if was, is := q.tenants["ns-P"], q.tenants["elsewhere"]; was.taken+was.running != 0 || is.taken != 1 || is.running != 1 {
		t.Errorf("charged: %+v and %+v", was, is)
	}
	q.calling(l)
	q.called(l, errStoreAway)
	q.leave(l)
	q.done(l)
	if q.first(l) != nil {
		t.Error("a message too many")
	}
	q.tick(0)
	if !q.knows("P") {
		t.Error("its trouble is forgotten at once")
	}
	clk.Step(troubleForgotten)
	q.tick(0)
	q.tick(0)
	if len(q.products)+len(q.tenants)+len(q.lines) != 0 {
		t.Errorf("%d products, %d tenants, %d lines are remembered", len(q.products), len(q.tenants), len(q.lines))
	}
}

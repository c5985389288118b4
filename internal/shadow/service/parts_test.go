package service

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

func TestParseTopic(t *testing.T) {
	for topic, want := range map[string]device{
		"$shadow/operation/ABCDE12345/front-door":             {"ABCDE12345", "front-door"},
		"$shadow/operation/P/a:b_C-9":                         {"P", "a:b_C-9"},
		"$shadow/operation/result/d":                          {"result", "d"},
		"$shadow/operation/P/":                                {},
		"$shadow/operation//d":                                {},
		"$shadow/operation/P":                                 {},
		"$shadow/operation/P/d/":                              {},
		"$shadow/operation/P/d/e":                             {},
		"$shadow/operation/result/P/d":                        {},
		"$shadow/operation/P-1/d":                             {},
		"$shadow/operation/P/d e":                             {},
		"$shadow/operation/P/d\n":                             {},
		"$shadow/operation/P/é":                               {},
		"/$shadow/operation/P/d":                              {},
		"$shadow/operations/P/d":                              {},
		"P/d/event":                                           {},
		"":                                                    {},
		"$shadow/operation/P/" + fmt.Sprintf("%049d", 0):      {},
		"$shadow/operation/" + fmt.Sprintf("%033d", 0) + "/d": {},
	} {
		got, ok := parseTopic(topic)
		if !ok {
			got = device{}
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(device{})); diff != "" || ok != (want != device{}) {
			t.Errorf("%q: %v %v, want %v", topic, got, ok, want)
		}
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	a, b := device{"P", "a"}, device{"P", "b"}
	l := newLimiter(10, 5)
	allowed := func(d device, tries int) int {
		n := 0
		for range tries {
			if l.allow(d, now) {
				n++
			}
		}
		return n
	}
	for _, step := range []struct {
		after time.Duration
		d     device
		want  int // of 100
	}{
		{0, a, 5},
		{0, b, 5}, // one device does not spend what is another's
		{0, a, 0},
		{100 * time.Millisecond, a, 1},
		{250 * time.Millisecond, a, 2},
		{50 * time.Millisecond, a, 1},
		{200 * time.Millisecond, b, 5}, // 600 ms after it was used up: full, and not more than full
		{time.Hour, a, 5},
		{450 * time.Millisecond, a, 4}, // remembered from one period to the next, with the half message that is left
		{450 * time.Millisecond, a, 5},
	} {
		now = now.Add(step.after)
		if got := allowed(step.d, 100); got != step.want {
			t.Errorf("after %v: %d messages of %s allowed, want %d", step.after, got, step.d.name, step.want)
		}
	}
}

// What a device has sent within its rate while nobody was connected is not too much, though
// it comes at once; and what it sends later is held to the rate as ever.
func TestLimiterAfterAConnection(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	d := device{"P", "d"}
	l := newLimiter(10, 5)
	for range 1000 {
		l.allow(d, now)
	}
	for _, connection := range []string{"the first", "another"} {
		l.connect(now)
		n := 0
		for range 10_000 {
			if l.allow(d, now) {
				n++
			}
		}
		if n != 605 {
			t.Errorf("%s connection: %d messages at once, want those of a minute and 5", connection, n)
		}
		now = now.Add(time.Second)
		for n = 0; l.allow(d, now); n++ {
		}
		if n != 5 {
			t.Errorf("%s connection: %d messages a second later, want 5", connection, n)
		}
		now = now.Add(backlog)
		for n = 0; l.allow(device{"P", "other"}, now); n++ {
		}
		if n != 5 {
			t.Errorf("%s connection: %d messages of a device that comes after a minute, want 5", connection, n)
		}
	}
}

func TestLimiterMemory(t *testing.T) {
	l := newLimiter(1, 10)
	l.max = 100
	for i := range 10_000 {
		l.allow(device{"P", fmt.Sprint(i)}, time.Unix(1_700_000_000, 0))
	}
	if n := len(l.current) + len(l.last); n > 200 {
		t.Errorf("it remembers %d devices, want at most 200", n)
	}
}

func TestQueue(t *testing.T) {
	const devices, each, workers = 20, 50, 8
	q := newQueue(64)
	var mu sync.Mutex
	var busy sync.Map
	var most int
	got := map[device][]int64{}
	var running sync.WaitGroup
	stop := make(chan struct{})
	for range workers {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				case l := <-q.ready:
					if _, twice := busy.LoadOrStore(l.device, true); twice {
						t.Errorf("two workers have device %s", l.device.name)
					}
					j := q.first(l)
					mu.Lock()
					got[l.device] = append(got[l.device], j.arrived.Unix())
					most = max(most, q.held())
					mu.Unlock()
					busy.Delete(l.device)
					q.done(l)
				}
			}
		})
	}
	want := map[device][]int64{}
	for i := range int64(each) {
		for d := range devices {
			d := device{"P", fmt.Sprint(d)}
			want[d] = append(want[d], i)
			if !q.put(d, job{arrived: time.Unix(i, 0)}, nil) {
				t.Fatal("a job was refused")
			}
		}
	}
	q.close()
	<-q.empty
	close(stop)
	running.Wait()
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(device{})); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
	if most > 64 {
		t.Errorf("it held %d jobs, want at most 64", most)
	}
	if q.put(device{"P", "d"}, job{}, nil) {
		t.Error("a closed queue took a job")
	}
	if len(q.lines) != 0 || q.held() != 0 {
		t.Errorf("%d lines and %d jobs are left", len(q.lines), q.held())
	}
}

// A full queue holds up whoever wants to add, until there is room, the connection is
// lost, or the queue is closed.
func TestQueueFull(t *testing.T) {
	d := device{"P", "d"}
	q := newQueue(1)
	q.put(d, job{}, nil)
	try := func(giveUp <-chan struct{}) <-chan bool {
		result := make(chan bool, 1)
		go func() { result <- q.put(d, job{}, giveUp) }()
		return result
	}
	lost := make(chan struct{})
	result := try(lost)
	close(lost)
	if <-result {
		t.Error("added a job for a lost connection")
	}
	result = try(nil)
	l := <-q.ready
	q.done(l)
	if !<-result {
		t.Error("not added although there was room")
	}
	result = try(nil)
	q.close()
	if <-result {
		t.Error("added to a closed queue")
	}
	select {
	case <-q.empty:
		t.Error("empty with a job in it")
	default:
	}
	q.done(<-q.ready)
	<-q.empty
}

// What is far too large takes the room of many, so that memory is bounded.
func TestQueueOfLargeMessages(t *testing.T) {
	d := device{"P", "d"}
	q := newQueue(10)
	large := job{bytes: 8*shadow.MaxMessageBytes + 1} // nine slots
	if !q.put(d, large, nil) || !q.put(d, job{bytes: 100}, nil) {
		t.Fatal("no room for a large message and a small one")
	}
	lost := make(chan struct{})
	close(lost)
	if q.put(d, job{}, lost) || q.put(d, large, lost) {
		t.Error("room for more")
	}
	q.done(<-q.ready)
	if len(q.slots) != 1 {
		t.Errorf("%d slots are taken by a small message, want 1", len(q.slots))
	}
	for q.held() > 0 {
		q.done(<-q.ready)
	}
	if !q.put(d, job{bytes: 1 << 30}, nil) || len(q.slots) != 10 {
		t.Errorf("a message larger than the queue takes %d slots, want all ten", len(q.slots))
	}
	q.close()
	q.done(<-q.ready)
	<-q.empty
	if len(q.slots) != 0 {
		t.Errorf("%d slots are taken at the end", len(q.slots))
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		opts Options
		want string
	}{
		{Options{Workers: -1}, "the option Workers is -1, must be at least 1"},
		{Options{QueueLength: -1}, "the option QueueLength is -1, must be at least 1"},
		{Options{Rate: -1}, "the option Rate is -1, must be more than 0"},
		{Options{Burst: -1}, "the option Burst is -1, must be at least 1"},
		{Options{RetryTime: -1}, "the options RetryTime and DrainTimeout must not be negative"},
		{Options{SharedGroup: "a/b"}, "the option SharedGroup has a character that a group cannot have: /, +, #, a space, or one beyond ASCII"},
		{Options{ClientID: "a b"}, `mqtt options: ClientID is "a b", must be 1 to 64 printable ASCII characters`},
		{Options{SharedGroup: "g"}, ""},
		{Options{}, ""},
	} {
		tt.opts.MQTT.URL = "tcp://broker"
		got := ""
		if _, err := New(nil, nil, tt.opts); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
}

// A shadow that cannot change any more is told at once, and not tried again.
func TestPassing(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{errors.New("the database is away"), true},
		{fmt.Errorf("wrapped: %w", fleet.ErrDeviceGone), false},
		{fmt.Errorf("wrapped: %w", shadow.ErrLastVersion), false},
		{&fleet.DeviceError{Reason: "InvalidShadow"}, false},
		{shadow.ErrVersion, false},
	} {
		if got := passing(tt.err); got != tt.want {
			t.Errorf("%v: passing %v, want %v", tt.err, got, tt.want)
		}
	}
}

package service

import (
	"errors"
	"fmt"
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

package namefilter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/clock"

	"batchtask.dev/operator/internal/cpushare"
)

// slowest is about the most expensive filter that is taken: it goes through all of its
// program at each character of a name that it does not match.
var slowest = strings.Repeat("a?", 511) + "!"

func matching(t *testing.T, m *matcher, f *Filter, names []string) []string {
	t.Helper()
	var got []string
	if err := m.each(t.Context(), "a", f, names, func(name string) bool {
		got = append(got, name)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestEach(t *testing.T) {
	m := newMatcher(cpushare.New(1, clock.RealClock{}), clock.RealClock{}, 1<<20)
	names := make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprintf("device-%05d", i)
	}
	if diff := cmp.Diff([]string{"device-00099", "device-00199"}, matching(t, m, MustParse("^device-00.99$"), names)[:2]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := matching(t, m, nil, names); !slices.Equal(got, names) {
		t.Errorf("no filter selects %d of %d", len(got), len(names))
	}
	if got := matching(t, m, MustParse(`[05]$`), names); len(got) != 2000 {
		t.Errorf("%d end in 0 or 5, want 2000", len(got))
	}
	var first []string
	if err := m.each(t.Context(), "a", MustParse("."), names, func(name string) bool {
		first = append(first, name)
		return len(first) < 3
	}); err != nil || !slices.Equal(first, names[:3]) {
		t.Errorf("told to stop at the third it gave %v, error %v", first, err)
	}
}

// Counting the looks at the clock shows, on a machine of any speed, that no more names
// are matched between two of them than the slowest filters can match in a slice.
func TestLooksOftenEnough(t *testing.T) {
	for _, pattern := range []string{slowest, "door$"} {
		f := MustParse(pattern)
		clk := &stepClock{}
		m := newMatcher(cpushare.New(1, clk), clk, 1<<20)
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := errors.New("ended by the test")
		names := slices.Repeat([]string{strings.Repeat("a", 47) + "!"}, 20_000)
		if pattern == "door$" {
			names = slices.Repeat([]string{"door"}, 20_000)
		}
		after := 0
		err := m.each(ctx, "a", f, names, func(string) bool {
			if after++; after == 1 {
				cancel(ended)
			}
			return true
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: it says %v", shorten(pattern), err)
		}
		if most := max(1, MaxInstructions/f.size.instructions); after > most {
			t.Errorf("%s: %d names were matched after its context had ended, want %d at the most", shorten(pattern), after, most)
		}
	}
}

// stepClock is a clock that moves with each look.
type stepClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *stepClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Microsecond)
	return c.now
}

func (c *stepClock) Since(then time.Time) time.Duration { return c.Now().Sub(then) }

// One namespace matches many names against the most expensive filters, all the time;
// another's pages have to wait for a turn or two each and no longer.
func TestOneNamespaceDoesNotHoldUpAnother(t *testing.T) {
	m := newMatcher(cpushare.New(1, clock.RealClock{}), clock.RealClock{}, maxProgramBytes)
	hostile, names := MustParse(slowest), slices.Repeat([]string{strings.Repeat("a", 48)}, 1<<20)
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	started := make(chan struct{}, 20)
	for range 20 {
		working.Go(func() {
			started <- struct{}{}
			_ = m.each(ctx, "hostile", hostile, names, func(string) bool { return true })
		})
	}
	for range 20 {
		<-started
	}
	// Were they served in the order in which they came, all of the million names of each
	// of the twenty would go first: hours.
	page := slices.Repeat([]string{"front-door-1"}, 1024)
	for range 20 {
		count := 0
		if err := m.each(t.Context(), "victim", MustParse("door"), page, func(string) bool { count++; return true }); err != nil || count != 1024 {
			t.Fatalf("%d names match, error %v", count, err)
		}
	}
	cancel()
	working.Wait()
}

// The memory of compiled programs is bounded however many there are, and those that have
// had to go are made again.
func TestMemoryOfPrograms(t *testing.T) {
	const most = 1 << 20
	m := newMatcher(cpushare.New(2, clock.RealClock{}), clock.RealClock{}, most)
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for round := range 2 {
				for i := range 50 {
					f := MustParse(fmt.Sprintf("^%d-%d-(?:a?b?){200}!$", worker, i))
					got := 0
					err := m.each(t.Context(), "a", f, []string{fmt.Sprintf("%d-%d-aab!", worker, i), "other"}, func(string) bool { got++; return true })
					if err != nil || got != 1 {
						t.Errorf("round %d: %s selects %d of two names, error %v", round, f, got, err)
					}
				}
			}
		})
	}
	all.Wait()
	p := m.programs
	sum := 0
	for e := p.used.Front(); e != nil; e = e.Next() {
		sum += e.Value.(*program).bytes
	}
	if p.bytes > most || p.bytes != sum || p.used.Len() != len(p.known) || p.used.Len() < 3 {
		t.Errorf("%d programs of %d bytes are kept (%d counted, %d by name), want some, and at most %d bytes", p.used.Len(), sum, p.bytes, len(p.known), most)
	}
}

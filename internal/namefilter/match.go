package namefilter

import (
	"container/list"
	"context"
	"fmt"
	"regexp"
	"runtime"
	"sync"

	"k8s.io/utils/clock"

	"batchtask.dev/operator/internal/cpushare"
)

// The processor and the memory belong to the process, so there is one of each.
var shared = newMatcher(cpushare.New(runtime.GOMAXPROCS(0)/2, clock.RealClock{}), clock.RealClock{}, maxProgramBytes)

// maxProgramBytes is about how much memory compiled programs may take.
const maxProgramBytes = 32 << 20

// Each calls yield, in their order, with those of names that f selects, until it returns
// false. All of them together take half of the processors at the most, and the
// namespaces share it fairly, so it may take long; it looks at ctx at least every
// millisecond.
func Each(ctx context.Context, namespace string, f *Filter, names []string, yield func(name string) (more bool)) error {
	return shared.each(ctx, namespace, f, names, yield)
}

type matcher struct {
	pool     *cpushare.Pool
	clock    clock.PassiveClock
	programs *programs
}

func newMatcher(pool *cpushare.Pool, clk clock.PassiveClock, bytes int) *matcher {
	return &matcher{pool: pool, clock: clk, programs: &programs{most: bytes, known: map[string]*list.Element{}}}
}

func (m *matcher) each(ctx context.Context, namespace string, f *Filter, names []string, yield func(string) bool) error {
	if f == nil {
		for _, name := range names {
			if !yield(name) {
				break
			}
		}
		return ctx.Err()
	}
	// As many names between two looks at the clock as surely take no longer than a slice.
	stride := max(1, MaxInstructions/f.size.instructions)
	next := 0
	var failed error
	err := m.pool.Run(ctx, namespace, func() (more bool) {
		began := m.clock.Now()
		program, err := m.programs.of(f)
		if err != nil {
			failed = err
			return false
		}
		for next < len(names) {
			end := min(next+stride, len(names))
			for ; next < end; next++ {
				if program.MatchString(names[next]) && !yield(names[next]) {
					return false
				}
			}
			if ctx.Err() != nil || m.clock.Since(began) >= cpushare.Slice {
				return next < len(names)
			}
		}
		return false
	})
	if err != nil {
		return fmt.Errorf("match names of devices: %w", err)
	}
	return failed
}

// programs keeps compiled filters, the ones used last, up to a size. Any number of tasks
// may run: each needs its program only while its names are matched, and makes it again
// where it has had to go.
type programs struct {
	most int // bytes

	mu    sync.Mutex
	known map[string]*list.Element // by pattern
	used  list.List                // of *program, the last one used first
	bytes int
}

type program struct {
	*regexp.Regexp
	pattern string
	bytes   int
}

// of returns the program of a filter. It is compiled outside of the lock: that takes
// milliseconds at the most, and is paid for by who asks.
func (p *programs) of(f *Filter) (*regexp.Regexp, error) {
	p.mu.Lock()
	if known := p.known[f.pattern]; known != nil {
		p.used.MoveToFront(known)
		p.mu.Unlock()
		return known.Value.(*program).Regexp, nil //nolint:forcetypeassert // it holds nothing else
	}
	p.mu.Unlock()
	compiled, err := regexp.Compile(f.pattern)
	if err != nil {
		return nil, explain(f.pattern, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[f.pattern] == nil {
		p.keepLocked(&program{compiled, f.pattern, f.size.bytes()})
	}
	return compiled, nil
}

func (p *programs) keepLocked(one *program) {
	p.known[one.pattern] = p.used.PushFront(one)
	for p.bytes += one.bytes; p.bytes > p.most && p.used.Len() > 1; {
		last := p.used.Remove(p.used.Back()).(*program) //nolint:forcetypeassert // it holds nothing else
		delete(p.known, last.pattern)
		p.bytes -= last.bytes
	}
}

// bytes is about what a program takes: 40 bytes an instruction, and 64 more in the form
// for anchored expressions; 4 for an end of a range, and 2 more in that form.
func (s size) bytes() int { return 1024 + 104*s.instructions + 6*s.runes }

package fleettest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/namefilter"
)

func (s *suite) scanPages() {
	// Bytes, not letters, give the order: '-' < '0' < ':' < 'A' < '_' < 'a'.
	want := append([]string{"-", "-a", "0", "00", ":", "A", "AA", "Z", "_", "a", "a-", "a0", "aA", "aa"}, numbered("d", 600)...)
	shuffled := slices.Clone(want)
	slices.Reverse(shuffled)
	s.create(named(shuffled...)...)

	q := fleet.Query{Product: s.product}
	for _, limit := range []int{1, 7, len(want) - 1, len(want), len(want) + 1} {
		if diff := cmp.Diff(want, s.all(q, limit)); diff != "" {
			s.Errorf("pages of %d (-want +got):\n%s", limit, diff)
		}
	}
	if got := s.count(q); got != int64(len(want)) {
		s.Errorf("Count %d, want %d", got, len(want))
	}
	if got := s.total(); got != int64(len(want)) {
		s.Errorf("Total %d, want %d", got, len(want))
	}
	if _, _, err := s.store.Scan(s.ctx, q, 0); err == nil {
		s.Error("Scan took a limit of 0")
	}
}

func (s *suite) scanRanges() {
	s.create(named("b", "d", "f", "h")...)
	tests := []struct {
		after, until string
		want         []string
	}{
		{"", "", []string{"b", "d", "f", "h"}},
		{"a", "", []string{"b", "d", "f", "h"}},
		{"b", "", []string{"d", "f", "h"}},
		{"c", "", []string{"d", "f", "h"}},
		{"h", "", []string{}},
		{"", "a", []string{}},
		{"", "b", []string{"b"}},
		{"", "c", []string{"b"}},
		{"", "z", []string{"b", "d", "f", "h"}},
		{"b", "f", []string{"d", "f"}},
		{"d", "d", []string{}},
		{"f", "d", []string{}},
	}
	for _, tt := range tests {
		q := fleet.Query{Product: s.product, After: tt.after, Until: tt.until}
		for _, limit := range []int{1, 2, 10} {
			if diff := cmp.Diff(tt.want, s.all(q, limit)); diff != "" {
				s.Errorf("after %q until %q, pages of %d (-want +got):\n%s", tt.after, tt.until, limit, diff)
			}
		}
		if got := s.count(q); got != int64(len(tt.want)) {
			s.Errorf("after %q until %q: Count %d, want %d", tt.after, tt.until, got, len(tt.want))
		}
	}
}

func (s *suite) scanFilters() {
	s.create(named("back-door", "door", "door-1", "doorbell", "Front_door", "k", "s", "window")...)
	tests := []struct {
		filter string
		want   []string
	}{
		{`.*`, []string{"Front_door", "back-door", "door", "door-1", "doorbell", "k", "s", "window"}},
		{`door`, []string{"Front_door", "back-door", "door", "door-1", "doorbell"}},
		{`door$`, []string{"Front_door", "back-door", "door"}},
		{`^door`, []string{"door", "door-1", "doorbell"}},
		{`^door$`, []string{"door"}},
		{`\Adoor\z`, []string{"door"}},
		{`(?i)^FRONT`, []string{"Front_door"}},
		{`^(door|window)$`, []string{"door", "window"}},
		{`^door.+`, []string{"door-1", "doorbell"}},
		{`^[^d]*$`, []string{"k", "s"}},
		{`-\d+$`, []string{"door-1"}},
		{`^`, []string{"Front_door", "back-door", "door", "door-1", "doorbell", "k", "s", "window"}},
		{`^doorbell|^s$`, []string{"doorbell", "s"}},
		{`(?m)^door$`, []string{"door"}},
		// Names are ASCII; patterns need not be.
		{`dör|^window`, []string{"window"}},
		{`\p{Lu}`, []string{"Front_door"}},
		{`^\pL+$`, []string{"door", "doorbell", "k", "s", "window"}},
		{`日本`, []string{}},
		{"(?i)^\u212a$", []string{"k"}}, // the Kelvin sign folds to k
		{"(?i)^\u017f$", []string{"s"}}, // the long s folds to s
		{`^nothing$`, []string{}},
	}
	for _, tt := range tests {
		q := fleet.Query{Product: s.product, Filter: namefilter.MustParse(tt.filter)}
		for _, limit := range []int{1, 3, 10} {
			if diff := cmp.Diff(tt.want, s.all(q, limit)); diff != "" {
				s.Errorf("filter %s, pages of %d (-want +got):\n%s", tt.filter, limit, diff)
			}
		}
		if got := s.count(q); got != int64(len(tt.want)) {
			s.Errorf("filter %s: Count %d, want %d", tt.filter, got, len(tt.want))
		}
	}
	q := fleet.Query{Product: s.product, Filter: namefilter.MustParse(`door`), After: "back-door", Until: "door-1"}
	if diff := cmp.Diff([]string{"door", "door-1"}, s.all(q, 1)); diff != "" {
		s.Errorf("filter and range (-want +got):\n%s", diff)
	}
}

// scanUnderChange reads pages while devices come and go. What was there all the
// time must be found, each name once and in order.
func (s *suite) scanUnderChange() {
	steady := numbered("m", 40)
	s.create(named(steady...)...)

	var changes sync.WaitGroup
	changes.Go(func() {
		for i := range 60 {
			name := fmt.Sprintf("m%05d-%d", i, i)
			s.h.Create(s, s.product, Device{Name: name})
			if i%2 == 0 {
				s.h.Delete(s, s.product, name)
			}
		}
	})
	var reads sync.WaitGroup
	for range 2 {
		reads.Go(func() {
			for range 50 {
				got := s.all(fleet.Query{Product: s.product}, 7)
				if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
					s.Errorf("names out of order or twice: %q", got)
				}
				got = slices.DeleteFunc(got, func(name string) bool { return len(name) > len("m00000") })
				if diff := cmp.Diff(steady, got); diff != "" {
					s.Errorf("steady devices (-want +got):\n%s", diff)
				}
			}
		})
	}
	changes.Wait()
	reads.Wait()
	s.synced()
	if got, want := s.total(), int64(40+30); got != want {
		s.Errorf("Total %d after all changes, want %d", got, want)
	}
}

func (s *suite) scanEnded() {
	s.create(named("a")...)
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	q := fleet.Query{Product: s.product, Filter: namefilter.MustParse(`.`)}
	if _, _, err := s.store.Scan(ctx, q, 10); !errors.Is(err, context.Canceled) {
		s.Errorf("Scan with an ended context: error %v", err)
	}
	if _, err := s.store.Count(ctx, q); !errors.Is(err, context.Canceled) {
		s.Errorf("Count with an ended context: error %v", err)
	}
}

func (s *suite) disabled() {
	s.create(Device{Name: "a"}, Device{Name: "b", Disabled: true}, Device{Name: "c"})
	expect := func(when string, want ...string) {
		s.Helper()
		for _, q := range []fleet.Query{
			{Product: s.product},
			{Product: s.product, Filter: namefilter.MustParse(`.*`)},
			{Product: s.product, Filter: namefilter.MustParse(`^[abc]$`), After: "-", Until: "c"},
		} {
			if diff := cmp.Diff(want, s.all(q, 2)); diff != "" {
				s.Errorf("%s (-want +got):\n%s", when, diff)
			}
			if got := s.count(q); got != int64(len(want)) {
				s.Errorf("%s: Count %d, want %d", when, got, len(want))
			}
		}
		if got := s.total(); got != 3 {
			s.Errorf("%s: Total %d, want 3", when, got)
		}
	}
	expect("one disabled", "a", "c")
	s.h.SetDisabled(s, s.product, "a", true)
	s.synced()
	expect("another disabled", "c")
	s.h.SetDisabled(s, s.product, "b", false)
	s.synced()
	expect("one enabled", "b", "c")
}

func (s *suite) productsApart() {
	other := s.h.Product(s)
	neighbour := fleet.Product{Namespace: s.product.Namespace, ProductID: "NEIGHBOUR1"}
	s.create(named("a", "b")...)
	s.h.Create(s, neighbour, named("b", "c", "d")...)
	s.h.Create(s, other, named("e")...)
	s.synced()
	if err := s.store.Sync(s.ctx, other.Namespace); err != nil {
		s.Fatalf("Sync: %v", err)
	}
	for product, want := range map[fleet.Product][]string{
		s.product: {"a", "b"},
		neighbour: {"b", "c", "d"},
		other:     {"e"},
		{Namespace: s.product.Namespace, ProductID: "NOSUCHONE1"}: {},
		{Namespace: "no-such-namespace", ProductID: "NOSUCHONE1"}: {},
	} {
		if diff := cmp.Diff(want, s.all(fleet.Query{Product: product}, 2)); diff != "" {
			s.Errorf("devices of %v (-want +got):\n%s", product, diff)
		}
		if got, err := s.store.Total(s.ctx, product); err != nil || got != int64(len(want)) {
			s.Errorf("Total of %v: %d (error %v), want %d", product, got, err, len(want))
		}
	}
}

// sync writes and asks at once, many times, since a store that does not wait
// may be lucky.
func (s *suite) sync() {
	s.synced() // a namespace without devices
	q := fleet.Query{Product: s.product}
	want := int64(0)
	check := func(what string) {
		s.Helper()
		s.synced()
		if got := s.count(q); got != want {
			s.Fatalf("after %s and Sync: Count %d, want %d", what, got, want)
		}
	}
	for i := range 20 {
		name := fmt.Sprintf("d%02d", i)
		s.h.Create(s, s.product, Device{Name: name})
		want++
		check("a creation")
		s.h.Create(s, s.product, Device{Name: name + "-x"})
		s.h.Delete(s, s.product, name)
		check("a creation and a deletion")
		s.h.SetDisabled(s, s.product, name+"-x", true)
		want--
		check("a disabling")
		s.h.SetDisabled(s, s.product, name+"-x", false)
		want++
		check("an enabling")
	}
	s.h.Create(s, s.product, named(numbered("more", 550)...)...)
	want += 550
	check("many creations")
	s.h.Create(s, s.product, Device{Name: "last"})
	want++
	check("a creation in a large namespace")

	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if err := s.store.Sync(ctx, s.product.Namespace); !errors.Is(err, context.Canceled) {
		s.Errorf("Sync with an ended context: error %v", err)
	}
}

func (s *suite) duplicates() {
	duplicator, ok := s.h.(Duplicator)
	if !ok {
		s.Skip("this store cannot hold two devices of one name")
	}
	s.create(named("a", "b")...)
	duplicator.Duplicate(s, s.product, "a")
	duplicator.Duplicate(s, s.product, "a")
	s.synced()

	q := fleet.Query{Product: s.product}
	for left := 3; left > 0; left-- {
		when := fmt.Sprintf("with %d objects", left)
		if diff := cmp.Diff([]string{"a", "b"}, s.all(q, 1)); diff != "" {
			s.Errorf("%s (-want +got):\n%s", when, diff)
		}
		if count, total := s.count(q), s.total(); count != 2 || total != 2 {
			s.Errorf("%s: Count %d and Total %d, want 2 and 2", when, count, total)
		}
		s.applyAll(s.update("task", `{"n":1}`), "a")
		if got := s.h.Shadow(s, s.product, "a"); got.Version != 1 {
			s.Errorf("%s: version %d of the shadow that counts, want 1", when, got.Version)
		}
		s.h.Delete(s, s.product, "a")
		s.synced()
	}
	if diff := cmp.Diff([]string{"b"}, s.all(q, 1)); diff != "" {
		s.Errorf("with none (-want +got):\n%s", diff)
	}
}

// Package namefilter holds the filters that select devices by name: which ones are
// taken, and how names are matched without one namespace's filters holding up another's
// work (CreateTask, deviceNameFilter).
//
// What a filter costs is bounded before anything is compiled: [Parse] refuses what is too
// large. Programs are compiled where they are needed, and kept in a memory of bounded
// size; see [Each].
package namefilter

import (
	"regexp/syntax"
	"unicode/utf8"
)

// MaxLength is the longest filter, in characters.
const MaxLength = 1024

// Filter is a regular expression in RE2 syntax that selects the names that it matches
// anywhere, unless it is anchored. A nil Filter selects all names.
type Filter struct {
	pattern     string
	size        size
	from, below string
}

// Parse reads a filter. The error says, for people, what is wrong with it.
func Parse(pattern string) (*Filter, error) {
	if n := utf8.RuneCountInString(pattern); n > MaxLength {
		return nil, tooLarge("has %d characters; at most %d are allowed", n, MaxLength)
	}
	if err := checkClasses(pattern); err != nil {
		return nil, err
	}
	tree, err := syntax.Parse(pattern, syntax.Perl) // as regexp.Compile does
	if err != nil {
		return nil, explain(pattern, err)
	}
	f := &Filter{pattern: pattern, size: sizeOf(tree)}
	if err := f.size.check(tree); err != nil {
		return nil, err
	}
	f.from, f.below = narrow(tree)
	return f, nil
}

// MustParse is [Parse] for filters that are known to be right; it panics for others.
func MustParse(pattern string) *Filter {
	f, err := Parse(pattern)
	if err != nil {
		panic("filter " + pattern + " " + err.Error())
	}
	return f
}

// String returns the filter as it was written; "" for a nil Filter.
func (f *Filter) String() string {
	if f == nil {
		return ""
	}
	return f.pattern
}

// Range returns a range of names, from inclusive and below exclusive, outside of which
// the filter selects none; it is empty if it selects no name at all.
func (f *Filter) Range() (from, below string) {
	if f == nil {
		return "", aboveNames
	}
	return f.from, f.below
}

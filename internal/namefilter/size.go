package namefilter

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

const (
	// MaxInstructions is the largest program of a filter. A name is matched against it in
	// a millisecond at the most (half a microsecond an instruction, for the longest
	// name), and it takes 80 KB. No filter of MaxLength characters is larger unless it
	// has repeat counts, which multiply: a character makes at most two instructions.
	MaxInstructions = 2*MaxLength + 64
	// maxRunes bounds the ranges of the classes of a program, counted as often as a
	// repeat count repeats them: a megabyte. `[\p{L}\p{N}]{48}` has 80,000.
	maxRunes = 256 << 10
	// maxUnicodeClasses and maxWideRanges bound the work of reading a filter, which is
	// a tenth of a millisecond for a class like \pL, and two for a range of most of Unicode
	// that ignores case.
	maxUnicodeClasses = 64
	maxWideRanges     = 8
)

// tooLargeError says what of a filter is too large.
type tooLargeError struct{ text string }

// Error implements [error].
func (e *tooLargeError) Error() string { return e.text }

func tooLarge(format string, args ...any) error {
	return &tooLargeError{fmt.Sprintf(format, args...)}
}

var (
	unicodeClass = regexp.MustCompile(`\\[pP]`)
	ignoresCase  = regexp.MustCompile(`\(\?[imsU-]*i`)
	wideRange    = regexp.MustCompile(`-(?:[^\x00-\x7f]|\\x\{)`)
)

// checkClasses refuses what takes long to read, before it is read. It goes by the text,
// and may count what only looks like a class.
func checkClasses(pattern string) error {
	if n := len(unicodeClass.FindAllStringIndex(pattern, -1)); n > maxUnicodeClasses {
		return tooLarge(`is too large: it has %d Unicode classes such as \pL; at most %d are allowed. Device names consist of ASCII letters, digits, ':', '_' and '-'`,
			n, maxUnicodeClasses)
	}
	if !ignoresCase.MatchString(pattern) {
		return nil
	}
	if n := len(wideRange.FindAllStringIndex(pattern, -1)); n > maxWideRanges {
		return tooLarge(`is too large: it ignores case and has %d ranges up to a character outside ASCII; at most %d are allowed. Device names consist of ASCII letters, digits, ':', '_' and '-'`,
			n, maxWideRanges)
	}
	return nil
}

// size is what a program takes, or more.
type size struct {
	instructions int
	runes        int // of all classes
}

// limit is where counting stops: counts beyond it are all the same, and cannot overflow
// when they are multiplied by a repeat count, which is at most 1000.
const limit = 1 << 30

func (s size) plus(o size) size {
	return size{min(s.instructions+o.instructions, limit), min(s.runes+o.runes, limit)}
}

func (s size) times(n int) size {
	if n <= 0 {
		return size{}
	}
	return size{min(s.instructions, limit/n) * n, min(s.runes, limit/n) * n}
}

func instructions(n int) size { return size{instructions: n} }

// sizeOf returns the size of the program of a whole expression.
func sizeOf(tree *syntax.Regexp) size {
	return programOf(tree).plus(instructions(2)) // that it matches, and that it fails
}

// programOf counts what regexp/syntax makes of re: repetitions are written out, so
// x{2,4} is xx(x(x)?)?. The depth of re is bounded by its parser.
func programOf(re *syntax.Regexp) size {
	switch re.Op {
	case syntax.OpLiteral:
		return instructions(max(1, len(re.Rune)))
	case syntax.OpCharClass:
		return size{instructions: 1, runes: len(re.Rune)}
	case syntax.OpCapture:
		return programOf(re.Sub[0]).plus(instructions(2))
	case syntax.OpStar: // of what may be empty: (x+)?
		return programOf(re.Sub[0]).plus(instructions(2))
	case syntax.OpPlus, syntax.OpQuest:
		return programOf(re.Sub[0]).plus(instructions(1))
	case syntax.OpConcat, syntax.OpAlternate:
		var total size
		for i, sub := range re.Sub {
			total = total.plus(programOf(sub))
			if i > 0 && re.Op == syntax.OpAlternate {
				total = total.plus(instructions(1))
			}
		}
		return size{max(1, total.instructions), total.runes}
	case syntax.OpRepeat:
		one := programOf(re.Sub[0])
		if re.Max < 0 {
			return one.times(max(1, re.Min)).plus(instructions(2))
		}
		optional := one.plus(instructions(1)).times(re.Max - re.Min)
		return one.times(re.Min).plus(optional).plus(instructions(1))
	default:
		return instructions(1)
	}
}

// check refuses a program that is too large, with the repetition that makes it so.
func (s size) check(tree *syntax.Regexp) error {
	if s.instructions <= MaxInstructions && s.runes <= maxRunes {
		return nil
	}
	what := fmt.Sprintf("%s instructions; at most %d are allowed", atLeast(s.instructions), MaxInstructions)
	if s.instructions <= MaxInstructions {
		what = fmt.Sprintf("classes of %s characters; at most %d are allowed", atLeast(s.runes), maxRunes)
	}
	text := "is too large: it would be compiled to " + what
	if most := largestRepeat(tree); most != nil {
		text += fmt.Sprintf(". Repeat counts multiply what they repeat: `%s` alone makes %s. A device name has at most 48 characters, so no count need be greater",
			shorten(most.String()), atLeast(programOf(most).instructions))
	}
	return &tooLargeError{text}
}

func atLeast(n int) string {
	if n >= limit/1000 {
		return fmt.Sprintf("more than %d", limit/1000)
	}
	return fmt.Sprint(n)
}

// largestRepeat returns the outermost repetition that makes most of the program, or nil
// if there is none.
func largestRepeat(re *syntax.Regexp) *syntax.Regexp {
	if re.Op == syntax.OpRepeat {
		return re
	}
	var most *syntax.Regexp
	for _, sub := range re.Sub {
		if r := largestRepeat(sub); r != nil && (most == nil || programOf(r).instructions > programOf(most).instructions) {
			most = r
		}
	}
	return most
}

// shorten cuts what is quoted in an error, on a character.
func shorten(text string) string {
	const most = 48
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

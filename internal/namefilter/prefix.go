package namefilter

import (
	"regexp/syntax"
	"strings"
)

// aboveNames is greater than all names of devices.
const aboveNames = "\x7f"

// madeOfNameBytes reports whether text has only characters that names of devices have.
func madeOfNameBytes(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != ':' && r != '_' && r != '-'
	})
}

// narrow returns a range of names, from inclusive and below exclusive, outside of
// which the expression matches none; it is empty if it matches no name at all.
func narrow(tree *syntax.Regexp) (from, below string) {
	if !anchored(tree) {
		return "", aboveNames
	}
	prefix, _ := literal(tree)
	if prefix == "" {
		return "", aboveNames
	}
	if !madeOfNameBytes(prefix) {
		return "", "" // no name begins so
	}
	last := len(prefix) - 1
	return prefix, prefix[:last] + string(rune(prefix[last]+1))
}

// anchored reports whether a match of re can only begin where the name does.
func anchored(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpBeginText, syntax.OpBeginLine: // names have one line
		return true
	case syntax.OpCapture, syntax.OpPlus:
		return anchored(re.Sub[0])
	case syntax.OpRepeat:
		return re.Min > 0 && anchored(re.Sub[0])
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			if anchored(sub) {
				return true
			}
			if !empty(sub) {
				return false
			}
		}
		return false
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			if !anchored(sub) {
				return false
			}
		}
		return true
	default:
		return false
	}
}

// empty reports whether re matches nothing but the empty text.
func empty(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpBeginText, syntax.OpEndLine, syntax.OpEndText,
		syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return true
	default:
		return false
	}
}

// literal returns what each match of re begins with; whole says that a match is
// nothing else.
func literal(re *syntax.Regexp) (text string, whole bool) {
	switch {
	case empty(re):
		return "", true
	case re.Op == syntax.OpLiteral:
		if re.Flags&syntax.FoldCase != 0 {
			return "", false
		}
		return string(re.Rune), true
	case re.Op == syntax.OpCapture:
		return literal(re.Sub[0])
	case re.Op == syntax.OpPlus, re.Op == syntax.OpRepeat && re.Min > 0:
		text, _ = literal(re.Sub[0])
		return text, false
	case re.Op == syntax.OpConcat:
		var b strings.Builder
		for _, sub := range re.Sub {
			part, whole := literal(sub)
			b.WriteString(part)
			if !whole {
				return b.String(), false
			}
		}
		return b.String(), true
	case re.Op == syntax.OpAlternate:
		text, whole = literal(re.Sub[0])
		for _, sub := range re.Sub[1:] {
			other, otherWhole := literal(sub)
			if common := common(text, other); common != text || common != other || !otherWhole {
				text, whole = common, false
			}
		}
		return text, whole
	default:
		return "", false
	}
}

// common returns what both begin with. It may end within a character; the range is
// right all the same, since names have none of more than one byte.
func common(a, b string) string {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n]
}

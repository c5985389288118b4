package namefilter

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"strings"
	"unicode/utf8"
)

// explain says what is wrong with a pattern and where. Patterns often come from
// engines that can do more than RE2, so what RE2 lacks is named.
func explain(pattern string, err error) error {
	var bad *syntax.Error
	if !errors.As(err, &bad) {
		return fmt.Errorf("is not a regular expression in RE2 syntax: %w", err)
	}
	fault := fmt.Sprintf("is not a regular expression in RE2 syntax: %s", bad.Code)
	if what := missing(bad); what != "" {
		fault += fmt.Sprintf(" (RE2 has no %s)", what)
	}
	at := strings.Index(pattern, bad.Expr)
	if at < 0 || bad.Expr == "" || bad.Expr == pattern {
		return fmt.Errorf("%s: `%s`", fault, bad.Expr)
	}
	return fmt.Errorf("%s: `%s` at character %d", fault, bad.Expr, utf8.RuneCountInString(pattern[:at])+1)
}

// missing names the feature of other engines that a fragment asks for, if any.
func missing(bad *syntax.Error) string {
	switch {
	case strings.HasPrefix(bad.Expr, "(?="), strings.HasPrefix(bad.Expr, "(?!"):
		return "look-ahead"
	case strings.HasPrefix(bad.Expr, "(?<="), strings.HasPrefix(bad.Expr, "(?<!"):
		return "look-behind"
	case strings.HasPrefix(bad.Expr, "(?>"):
		return "atomic groups"
	case bad.Code == syntax.ErrInvalidEscape && len(bad.Expr) == 2 && bad.Expr[1] >= '1' && bad.Expr[1] <= '9',
		strings.HasPrefix(bad.Expr, `\k`):
		return "back-references"
	default:
		return ""
	}
}
